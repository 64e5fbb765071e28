"""What LoRA and its variants share: the fields, where they act, and PEFT's LORA files.

Shapes: r rank, in and out features.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import BaseModel, Field

from models.nn.places import (
    Names,
    match_targets,
    peft_name,
    places_in,
    refuse_settings,
    shorten_targets,
)
from models.nn.shape import HEAD, Shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy_loader.load("torch")


MOST_RANK = 1024
MOST_ALPHA = 65536.0
RANK_HELP = "Rows of A and columns of B."
ALPHA_HELP = (
    "The update is scaled by alpha / rank. Left as it is, one learning rate suits every rank."
)


class LowRank(BaseModel):
    """A trained product B A beside frozen weights, scaled by alpha / rank."""

    peft_tensors: ClassVar[Mapping[str, str]] = {
        "lora_A": "lora_A.weight",
        "lora_B": "lora_B.weight",
    }
    """Our names of a place's tensors, and PEFT's."""

    rank: int = Field(16, ge=1, le=MOST_RANK, description=RANK_HELP)
    alpha: float = Field(32.0, gt=0, le=MOST_ALPHA, description=ALPHA_HELP)
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
        """Return A (r, in) and B (out, r) for every place."""
        return {
            f"{place}.{name}": dimensions
            for place in self.places(shape)
            for name, dimensions in (
                ("lora_A", (self.rank, shape.linears[place][1])),
                ("lora_B", (shape.linears[place][0], self.rank)),
            )
        }

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's LORA form."""
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha.is_integer() else self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "target_modules": list(shorten_targets(self.places(shape), shape.linears)),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        return config, {theirs: t[ours] for theirs, ours in self._names(shape).items()}

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """Give PEFT's tensors our names."""
        names = self._names(shape)
        return {names.get(name, name): tensor for name, tensor in t.items()}

    @classmethod
    def read_peft(
        cls,
        config: Mapping[str, Any],
        t: Mapping[str, Tensor],
        shape: Shape,
        *,
        flags: Mapping[str, tuple[Any, ...]],
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's LORA form; what it acts on is told by the tensors it holds.

        `flags` holds the values that settings of a variant may have.
        """
        starts = (True, "gaussian", "orthogonal")
        refuse_settings(
            config,
            read=("r", "lora_alpha", "lora_dropout", "use_rslora"),
            allowed={"bias": ("none",), "init_lora_weights": starts, **flags},
        )
        held = places_in(t, tensor=cls.peft_tensors["lora_A"])
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

    def _names(self, shape: Shape) -> dict[str, str]:
        """Return our name of every tensor by PEFT's."""
        return {
            peft_name(place, theirs): f"{place}.{ours}"
            for place in self.places(shape)
            for ours, theirs in self.peft_tensors.items()
        }


def draw_down(dimensions: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw (r, in) float32 from U(-1/sqrt(in), 1/sqrt(in)): Kaiming's with a = sqrt(5), as PEFT."""
    bound = 1 / sqrt(dimensions[1])
    return torch.empty(dimensions).uniform_(-bound, bound, generator=generator)
