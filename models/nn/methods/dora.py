"""DoRA: a low-rank update whose direction and magnitude are trained apart.

Liu et al., arXiv 2402.09353: y = c * (W x + s B A x) + b0 with c = m / norm(W + s B A), m (out,)
and the norm that of each row of the weight. The base's bias b0 is not scaled. As section 4.3
advises, and as PEFT does, no gradient flows through the norm. A place has r (in + out) + out
parameters.

The norm is computed without forming B A, row by row:
norm^2 = |W|^2 + 2 s sum((W AT) * B) + s^2 sum((B (A AT)) * B).
m starts at the same formula, so that c is exactly one at step 0. Dropout falls on the input of A
alone, as in LoRA; PEFT drops the input of W too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from core.errors import InvalidRequest
from models.nn.low_rank import LowRank, draw_down
from models.nn.methods.base import Method, Site
from models.nn.shape import Shape
from models.nn.terms import LinearTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
else:
    torch = lazy_loader.load("torch")

_LEAST_SQUARE = 1e-30
"""Keeps the norm of a row of zeros from dividing by zero."""


class Dora(LowRank, Method):
    """y = c * (W x + s B A x), c a trained magnitude over the norm of W + s B A; c starts at 1."""

    sites: ClassVar[frozenset[Site]] = frozenset({"linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"rank": 4},
        {"rank": 3, "alpha": 5, "use_rslora": True, "target_modules": ["o_proj", "lm_head"]},
        {"rank": 2, "dropout": 0.25, "target_modules": ["layers.1.mlp.down_proj"]},
    )
    learning_rate: ClassVar[float] = 1e-3
    peft_type: ClassVar[str | None] = "LORA"
    peft_tensors: ClassVar[Mapping[str, str]] = {
        **LowRank.peft_tensors,
        "lora_magnitude_vector": "lora_magnitude_vector",
    }

    kind: Literal["dora"] = Field("dora", alias="type")

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return A (rank, in), B (out, rank) and the magnitude (out,) for every place."""
        magnitudes = {
            f"{place}.lora_magnitude_vector": (shape.linears[place][0],)
            for place in self.places(shape)
        }
        return super().tensors(shape) | magnitudes

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A as LoRA does; B is zero, and the magnitude the norm of the base's rows."""
        tensors = {}
        for name, size in self.tensors(base.shape).items():
            place, _, tensor = name.rpartition(".")
            if tensor == "lora_A":
                tensors[name] = draw_down(size, generator)
            elif tensor == "lora_B":
                tensors[name] = torch.zeros(size)
            else:
                tensors[name] = _root(base.row_squares(place)).cpu()
        return tensors

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:
        """Return the low-rank term with its output scaled, and the bias that this takes off."""
        down = t.get(f"{place}.lora_A")
        if down is None:
            return None
        up = t[f"{place}.lora_B"]
        norm = self._norm(down, up, place=place, base=base)
        scale = t[f"{place}.lora_magnitude_vector"].to(norm.device) / norm
        bias = base.bias(place)
        return LinearTerm(
            down=down,
            up=up,
            scale=self.scale,
            dropout=self.dropout,
            output_scale=scale,
            bias=None if bias is None else bias * (1 - scale),
        )

    def _norm(self, down: Tensor, up: Tensor, *, place: str, base: Base) -> Tensor:
        """Return (out,): the norm of each row of W + s B A, without a gradient."""
        with torch.no_grad():
            weight = base.weight(place)
            down, up = down.to(weight.device), up.to(weight.device)
            cross = ((weight @ down.T) * up).sum(1)
            square = ((up @ (down @ down.T)) * up).sum(1)
            return _root(base.row_squares(place) + 2 * self.scale * cross + self.scale**2 * square)

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's LORA form with use_dora."""
        config, tensors = super().to_peft(t, shape)
        return config | {"use_dora": True}, tensors

    @classmethod
    def reads_peft(cls, config: Mapping[str, Any]) -> bool:
        """Leave what has no magnitudes to LoRA."""
        return super().reads_peft(config) and bool(config.get("use_dora"))

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's LORA form with use_dora."""
        if not config.get("use_dora"):
            raise InvalidRequest("This adapter is not DoRA's.", code="unsupported_adapter")
        return cls.read_peft(config, t, shape, flags={"use_dora": (True,)})


def _root(squares: Tensor) -> Tensor:
    """Return the norm from the sum of squares, never zero."""
    return squares.clamp_min(_LEAST_SQUARE).sqrt()
