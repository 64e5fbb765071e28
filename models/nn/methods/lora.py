"""LoRA: a trained low-rank update beside frozen linear weights (Hu et al., arXiv 2106.09685).

y = W x + s B A x, with A (r, in) and B (out, r), section 4.1: r (in + out) parameters a place.
s is alpha / r, or alpha / sqrt(r) as rsLoRA (Kalajdzievski, arXiv 2312.03732). LoRA+ (Hayou et al.,
arXiv 2402.12354) lets B learn faster than A; its files are those of LoRA.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from models.nn.low_rank import (
    ALPHA_HELP,
    MOST_ALPHA,
    MOST_RANK,
    RANK_HELP,
    LowRank,
    draw_down,
)
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


class Lora(LowRank, Method):
    """y = W x + s B A x; A starts uniform and B at zero, so that training starts at the base."""

    sites: ClassVar[frozenset[Site]] = frozenset({"linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"rank": 4},
        {"rank": 3, "alpha": 5, "use_rslora": True, "target_modules": ["o_proj", "lm_head"]},
        {"rank": 2, "dropout": 0.25, "target_modules": ["layers.1.mlp.down_proj"]},
        {"rank": 2, "alpha": 4, "learning_rate_ratio": 16.0},
    )
    learning_rate: ClassVar[float] = 1e-3
    peft_type: ClassVar[str | None] = "LORA"

    kind: Literal["lora"] = Field("lora", alias="type")
    # What PiSSA stores is a LoRA of twice its rank r; with rsLoRA its alpha is 2 sqrt(r) times as
    # large, for the same scale.
    rank: int = Field(16, ge=1, le=2 * MOST_RANK, description=RANK_HELP)
    alpha: float = Field(32.0, gt=0, le=2 * sqrt(MOST_RANK) * MOST_ALPHA, description=ALPHA_HELP)
    learning_rate_ratio: float = Field(
        1.0,
        gt=0,
        le=1024,
        description="How many times faster B learns than A (LoRA+ advises 16, with a lower "
        "learning rate).",
    )

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A from U(-1/sqrt(in), 1/sqrt(in)), as PEFT does; B is zero."""
        return {
            name: draw_down(size, generator) if name.endswith("lora_A") else torch.zeros(size)
            for name, size in self.tensors(base.shape).items()
        }

    def learning_rate_scale(self, name: str) -> float:
        """Return LoRA+'s ratio for B."""
        return self.learning_rate_ratio if name.endswith("lora_B") else 1.0

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the low-rank term."""
        down = t.get(f"{place}.lora_A")
        if down is None:
            return None
        return LinearTerm(
            down=down, up=t[f"{place}.lora_B"], scale=self.scale, dropout=self.dropout
        )

    @classmethod
    def reads_peft(cls, config: Mapping[str, Any]) -> bool:
        """Leave what has magnitudes too to DoRA."""
        return super().reads_peft(config) and not config.get("use_dora")

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's LORA form."""
        return cls.read_peft(config, t, shape, flags={})
