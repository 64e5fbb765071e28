"""LLaMA-Adapter V2: gated prompts, the norms' gains, and a scale and bias on every linear layer.

Gao et al., arXiv 2304.15010, section 3.1, in LitGPT's form: y = c * (W x + b0 + b), with c (out,)
starting at one and b (out,) at zero, also at lm_head; gains start at the base's; the prompts are
LLaMA-Adapter's, through the scaled projections, with a gate of each head that no tanh bounds.
Training starts at the base.
With n of L layers prompted, n (p d + H) + (2L + 1) d + 2 sum(out) parameters (2L + 1: the norms).
PEFT has no such type: stored in our own form, `layers.<i>.self_attn.adaption_prompt` and
`.adaption_gate`, `<norm>.gain`, `<linear>.adapter_scale` and `.adapter_bias`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lazy_loader
from pydantic import Field

from models.nn.gated_prompt import PROMPT, GatedPrompt, attend, name_in
from models.nn.methods.base import Method, Site
from models.nn.shape import HEAD, Shape
from models.nn.terms import LinearTerm, NormTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.terms import AttentionTerm
else:
    torch = lazy_loader.load("torch")

_GATE = "adaption_gate"


class LlamaAdapterV2(GatedPrompt, Method):
    """Gated prompts, gains of the norms, and y = c * (W x + b0 + b) at every linear layer."""

    sites: ClassVar[frozenset[Site]] = frozenset({"attention", "norm", "linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt_length": 4},
        {"prompt_length": 2, "layers": 3, "lm_head": False},
    )
    learning_rate: ClassVar[float] = 5e-3

    kind: Literal["llama_adapter_v2"] = Field("llama_adapter_v2", alias="type")
    lm_head: bool = Field(
        default=True, description="Whether lm_head has a scale and a bias too, as in LitGPT."
    )

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return prompts (p, d), gates (H,), gains (d,), and scales and biases (out,)."""
        gates = {name_in(layer, _GATE): (shape.heads,) for layer in self.prompted(shape)}
        gains = {f"{place}.gain": (size,) for place, size in shape.norms.items()}
        vectors = {
            f"{place}.{name}": (out,)
            for place, (out, _) in shape.linears.items()
            if self.lm_head or place != HEAD
            for name in ("adapter_scale", "adapter_bias")
        }
        return self.prompts(shape) | gates | gains | vectors

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw prompts from N(0, 1); scales are one, gains the base's, gates and biases zero."""
        tensors = {}
        for name, size in self.tensors(base.shape).items():
            place, _, tensor = name.rpartition(".")
            if tensor == PROMPT:
                tensors[name] = torch.randn(size, generator=generator)
            elif tensor == "gain":
                tensors[name] = base.gain(place).detach().float().cpu().clone()
            else:
                tensors[name] = torch.full(size, 1.0 if tensor == "adapter_scale" else 0.0)
        return tensors

    def attention(self, t: Mapping[str, Tensor], layer: int, base: Base) -> AttentionTerm | None:
        """Return the gated attention to the prompt."""
        prompt_pd = t.get(name_in(layer, PROMPT))
        if prompt_pd is None:
            return None
        linears = {
            place: term
            for place in base.shape.linears
            if place.startswith(name_in(layer, ""))
            and (term := self.linear(t, place, base)) is not None
        }
        gate = t[name_in(layer, _GATE)]
        return attend(layer, prompt_pd, gate=gate, base=base, linears=linears)

    def norm(self, t: Mapping[str, Tensor], place: str, base: Base) -> NormTerm | None:  # noqa: ARG002
        """Return the trained gain."""
        return NormTerm(gain=t[f"{place}.gain"])

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the scale, and the bias that it scales too."""
        scale = t.get(f"{place}.adapter_scale")
        if scale is None:
            return None
        return LinearTerm(output_scale=scale, bias=scale * t[f"{place}.adapter_bias"])
