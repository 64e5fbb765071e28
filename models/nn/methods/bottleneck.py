"""Bottleneck adapters: small two-layer networks added to the outputs of a block's sublayers.

y += s * (U act(D z + b_D) + b_U), with D (m, d) and U (d, m), at the sublayer's output before it
joins the residual. U and both biases start at zero, so that training starts at the base.

`houlsby` (Houlsby et al., arXiv 1902.00751, section 2.1) has two a block, behind attention and
behind the feed-forward, z the sublayer's own output: 2L (2 d m + m + d) parameters. `pfeiffer`
(Pfeiffer et al., arXiv 2005.00247, section 3.2.1) has the second alone; `parallel` (He et al.,
arXiv 2110.04366, sections 3.3 and 4.6: best beside the feed-forward, scaled by 4) reads what the
feed-forward reads: L (2 d m + m + d) each. PEFT has no such type: stored in our own form,
`<sublayer>.adapter_down`, `.adapter_down_bias`, `.adapter_up`, `.adapter_up_bias`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lazy_loader
from pydantic import Field, model_validator

from models.nn.low_rank import draw_down
from models.nn.methods.base import Method, Site
from models.nn.shape import Shape
from models.nn.terms import Activation, HiddenTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
else:
    torch = lazy_loader.load("torch")

_PARALLEL_SCALE = 4.0


class Bottleneck(Method):
    """y += s (U act(D z + b) + c) at sublayers; U, b and c start at zero."""

    sites: ClassVar[frozenset[Site]] = frozenset({"hidden"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"size": 6},
        {"size": 5, "placement": "pfeiffer", "activation": "relu", "scale": 0.5},
        {"size": 4, "placement": "parallel", "activation": "silu"},
    )
    learning_rate: ClassVar[float] = 1e-3

    kind: Literal["bottleneck"] = Field("bottleneck", alias="type")
    placement: Literal["houlsby", "pfeiffer", "parallel"] = Field(
        "houlsby",
        description="`houlsby`: behind attention and behind the feed-forward; `pfeiffer`: behind "
        "the feed-forward; `parallel`: beside the feed-forward, reading its input.",
    )
    size: int = Field(64, ge=1, le=8192, description="Width of the bottleneck.")
    activation: Activation = Field("gelu", description="The nonlinearity inside the bottleneck.")
    scale: float = Field(
        1.0,
        gt=0,
        le=1024,
        description="What multiplies the bottleneck's output; `parallel` starts from 4 unless "
        "this is given.",
    )

    @model_validator(mode="before")
    @classmethod
    def _scale_by_placement(cls, block: Any) -> Any:
        if isinstance(block, dict) and block.get("placement") == "parallel":
            return {"scale": _PARALLEL_SCALE} | block
        return block

    def places(self, shape: Shape) -> tuple[str, ...]:
        """Return the sublayers that have a bottleneck."""
        both = self.placement == "houlsby"
        return tuple(place for place in shape.sublayers if both or place.endswith(".mlp"))

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return D (m, d), b_D (m,), U (d, m) and b_U (d,) for every sublayer."""
        sizes = {
            "adapter_down": (self.size, shape.hidden),
            "adapter_down_bias": (self.size,),
            "adapter_up": (shape.hidden, self.size),
            "adapter_up_bias": (shape.hidden,),
        }
        return {
            f"{place}.{name}": size for place in self.places(shape) for name, size in sizes.items()
        }

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw D from U(-1/sqrt(d), 1/sqrt(d)); all else is zero."""
        return {
            name: draw_down(size, generator) if name.endswith("adapter_down") else torch.zeros(size)
            for name, size in self.tensors(base.shape).items()
        }

    def hidden(self, t: Mapping[str, Tensor], place: str, base: Base) -> HiddenTerm | None:  # noqa: ARG002
        """Return the bottleneck."""
        down = t.get(f"{place}.adapter_down")
        if down is None:
            return None
        return HiddenTerm(
            down=down,
            down_bias=t[f"{place}.adapter_down_bias"],
            up=t[f"{place}.adapter_up"],
            up_bias=t[f"{place}.adapter_up_bias"],
            activation=self.activation,
            scale=self.scale,
            reads="input" if self.placement == "parallel" else "output",
        )
