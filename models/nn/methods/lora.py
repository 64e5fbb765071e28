"""LoRA: a trained low-rank update beside frozen linear weights (Hu et al., arXiv 2106.09685).

Scaled by alpha / rank, or by alpha / sqrt(rank) as rsLoRA (Kalajdzievski, arXiv 2312.03732).
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from models.nn.methods.base import Method, Site
from models.nn.places import match_targets, peft_name, places_in, refuse_settings, shorten_targets
from models.nn.shape import HEAD, Shape
from models.nn.terms import LinearTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.backbone import Base
else:
    torch = lazy_loader.load("torch")


Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Lora(Method):
    """y = W x + s B A x; A starts uniform and B at zero, so that training starts at the base."""

    sites: ClassVar[frozenset[Site]] = frozenset({"linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"rank": 4},
        {"rank": 3, "alpha": 5, "use_rslora": True, "target_modules": ["o_proj", "lm_head"]},
        {"rank": 2, "dropout": 0.25, "target_modules": ["layers.1.mlp.down_proj"]},
    )
    learning_rate: ClassVar[float] = 1e-3
    peft_type: ClassVar[str | None] = "LORA"

    kind: Literal["lora"] = Field("lora", alias="type")
    rank: int = Field(16, ge=1, le=1024, description="Rows of A and columns of B.")
    alpha: float = Field(
        32.0,
        gt=0,
        le=65536,
        description="The update is scaled by alpha / rank. Left as it is, one learning rate "
        "suits every rank.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of A, in training.")
    target_modules: Literal["all-linear"] | Names = Field(
        "all-linear",
        description="Where to act: `all-linear` (every linear layer but lm_head), or names such "
        "as `q_proj` or `layers.3.mlp.down_proj`.",
    )
    use_rslora: bool = Field(
        default=False, description="Scale by alpha / sqrt(rank) instead (rsLoRA)."
    )

    @property
    def scale(self) -> float:
        """What multiplies B A x."""
        return self.alpha / (sqrt(self.rank) if self.use_rslora else self.rank)

    def places(self, shape: Shape) -> tuple[str, ...]:
        """Return where the update acts."""
        if self.target_modules == "all-linear":
            return tuple(place for place in shape.linears if place != HEAD)
        return match_targets(self.target_modules, shape.linears)

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return A (rank, in) and B (out, rank) for every place."""
        return {
            f"{place}.{name}": dimensions
            for place in self.places(shape)
            for name, dimensions in (
                ("lora_A", (self.rank, shape.linears[place][1])),
                ("lora_B", (shape.linears[place][0], self.rank)),
            )
        }

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A from U(-1/sqrt(in), 1/sqrt(in)), as PEFT does; B is zero."""
        tensors = {}
        for name, dimensions in self.tensors(base.shape).items():
            tensors[name] = torch.zeros(dimensions)
            if name.endswith("lora_A"):
                bound = 1 / sqrt(dimensions[1])
                tensors[name].uniform_(-bound, bound, generator=generator)
        return tensors

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the low-rank term."""
        down = t.get(f"{place}.lora_A")
        if down is None:
            return None
        return LinearTerm(
            down=down, up=t[f"{place}.lora_B"], scale=self.scale, dropout=self.dropout
        )

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's LORA form."""
        places = self.places(shape)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha.is_integer() else self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "target_modules": list(shorten_targets(places, shape.linears)),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        return config, {
            peft_name(place, f"{name}.weight"): t[f"{place}.{name}"]
            for place in places
            for name in ("lora_A", "lora_B")
        }

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """Give PEFT's tensors our names."""
        names = {
            peft_name(place, f"{name}.weight"): f"{place}.{name}"
            for place in self.places(shape)
            for name in ("lora_A", "lora_B")
        }
        return {names.get(name, name): tensor for name, tensor in t.items()}

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's LORA form; what it acts on is told by the tensors it holds."""
        refuse_settings(
            config,
            read=("r", "lora_alpha", "lora_dropout", "use_rslora"),
            allowed={"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal")},
        )
        held = places_in(t, tensor="lora_A.weight")
        chosen = [place for place in shape.linears if place in held]
        everywhere = held == set(shape.linears) - {HEAD}
        method = cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            use_rslora=config.get("use_rslora", False),
            target_modules="all-linear" if everywhere else shorten_targets(chosen, shape.linears),
        )
        return method, method.unpack(t, shape)
