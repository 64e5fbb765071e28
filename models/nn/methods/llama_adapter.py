"""LLaMA-Adapter: prompts in the upper layers, attended to beside the sequence, behind a zero gate.

Zhang et al., arXiv 2303.16199, section 3.2, and the authors' code: in each upper layer,
o += tanh(g) * softmax(q kT / sqrt(h)) v with k = W_k P and v = W_v P of a trained prompt P (p, d),
q rotated, k not, in a softmax of its own. P ~ N(0, 1), g (H,) zero, so that training starts at the
base; n layers have n (p d + H) parameters.

With `gates` `layer` one gate (1,) serves all heads; with `gate_activation` `none`, g stands for
tanh(g), as in LitGPT and PEFT. Served and stored is the gate as it acts, `adaption_gate`. Where all
gates of each layer agree this is PEFT's ADAPTION_PROMPT, else our own form,
`layers.<i>.self_attn.adaption_prompt` and `.adaption_gate`. PEFT computes the same function where
the heads make up the hidden size and o_proj has no bias (it would add that twice); elsewhere too
the form is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from core.errors import InvalidRequest
from models.nn.gated_prompt import PROMPT, GatedPrompt, attend, name_in
from models.nn.methods.base import Method, Site
from models.nn.places import peft_name, refuse_settings
from models.nn.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.terms import AttentionTerm
else:
    torch = lazy_loader.load("torch")

_TRAINED_GATE = "gate"
_GATE = "adaption_gate"


class LlamaAdapter(GatedPrompt, Method):
    """o += tanh(g) * softmax(q kT) v, k and v of a trained prompt; g starts at zero."""

    sites: ClassVar[frozenset[Site]] = frozenset({"attention"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt_length": 4},
        {"prompt_length": 3, "layers": 3, "gate_activation": "none"},
        {"prompt_length": 2, "layers": 2, "gates": "layer"},
        {"prompt_length": 1, "layers": 2, "gates": "layer", "gate_activation": "none"},
    )
    learning_rate: ClassVar[float] = 2e-2
    peft_type: ClassVar[str | None] = "ADAPTION_PROMPT"

    kind: Literal["llama_adapter"] = Field("llama_adapter", alias="type")
    gates: Literal["head", "layer"] = Field(
        "head",
        description="A gate for each head, or one for each layer, which PEFT can read.",
    )
    gate_activation: Literal["tanh", "none"] = Field(
        "tanh", description="`tanh` keeps gates between -1 and 1; `none` does not bound them."
    )

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the prompt (p, d) and the gate (H,) or (1,) of every upper layer."""
        return self._tensors(shape, _GATE if self.gate_activation == "none" else _TRAINED_GATE)

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw prompts from N(0, 1); gates are zero."""
        return {
            name: torch.randn(size, generator=generator)
            if name.endswith(PROMPT)
            else torch.zeros(size)
            for name, size in self.tensors(base.shape).items()
        }

    def attention(self, t: Mapping[str, Tensor], layer: int, base: Base) -> AttentionTerm | None:
        """Return the gated attention to the prompt."""
        prompt_pd = t.get(name_in(layer, PROMPT))
        if prompt_pd is None:
            return None
        return attend(layer, prompt_pd, gate=_acting_gate(t, layer), base=base)

    def served(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the prompt (p, d) and the gate as it acts of every upper layer."""
        return self._tensors(shape, _GATE)

    def finish(self, t: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
        """Return the gates as they act."""
        tensors = {}
        for layer in self.prompted(base.shape):
            tensors[name_in(layer, PROMPT)] = t[name_in(layer, PROMPT)]
            tensors[name_in(layer, _GATE)] = _acting_gate(t, layer)
        return tensors

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return PEFT's ADAPTION_PROMPT form, which has one gate a layer; None for other gates."""
        gates = {layer: t[name_in(layer, _GATE)] for layer in self.prompted(shape)}
        agree = all(bool((gate == gate[0]).all()) for gate in gates.values())
        if not agree or _peft_differs(shape):
            return None
        config = {
            "peft_type": "ADAPTION_PROMPT",
            "task_type": "CAUSAL_LM",
            "target_modules": "self_attn",
            "adapter_len": self.prompt_length,
            "adapter_layers": len(gates),
            "inference_mode": True,
        }
        tensors = {}
        for layer, gate in gates.items():
            tensors[_peft_name(layer, PROMPT)] = t[name_in(layer, PROMPT)][None]
            tensors[_peft_name(layer, _GATE)] = gate[:1].clone()
        return config, tensors

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """Give PEFT's tensors our names and dimensions; our own form stays as it is."""
        tensors = dict(t)
        for layer in self.prompted(shape):
            for name in (PROMPT, _GATE):
                if (stored := tensors.pop(_peft_name(layer, name), None)) is not None:
                    is_gate = name == _GATE
                    tensors[name_in(layer, name)] = (
                        stored.expand(self._gate_size(shape)).clone() if is_gate else stored[0]
                    )
        return tensors

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's ADAPTION_PROMPT form: one gate a layer, without tanh."""
        refuse_settings(config, read=("adapter_len", "adapter_layers"), allowed={})
        if reason := _peft_differs(shape):
            raise InvalidRequest(
                f"PEFT computes an ADAPTION_PROMPT differently on such a base ({reason}); train a "
                "llama_adapter on it instead.",
                code="unsupported_adapter",
            )
        method = cls(
            prompt_length=config["adapter_len"],
            layers=config["adapter_layers"],
            gates="layer",
            gate_activation="none",
        )
        return method, method.unpack(t, shape)

    def _gate_size(self, shape: Shape) -> tuple[int]:
        return (shape.heads if self.gates == "head" else 1,)

    def _tensors(self, shape: Shape, gate: str) -> dict[str, tuple[int, ...]]:
        sizes = {name_in(layer, gate): self._gate_size(shape) for layer in self.prompted(shape)}
        return self.prompts(shape) | sizes


def _acting_gate(t: Mapping[str, Tensor], layer: int) -> Tensor:
    """Return the gate as it acts, from the tensors of training or those served."""
    trained = t.get(name_in(layer, _TRAINED_GATE))
    return t[name_in(layer, _GATE)] if trained is None else torch.tanh(trained)


def _peft_name(layer: int, tensor: str) -> str:
    return peft_name(f"layers.{layer}.self_attn", tensor)


def _peft_differs(shape: Shape) -> str | None:
    """Return why PEFT computes something else on such a base, if it does."""
    names = shape.parameters
    if shape.heads * shape.head_dim != shape.hidden:
        return "its heads do not make up the hidden size"
    if any(name.endswith("self_attn.o_proj.bias") for name in names):
        return "o_proj has a bias"
    if any(name.endswith("self_attn.k_norm.weight") for name in names):
        return "keys are normalised"
    return "projections are fused" if shape.parts else None
