"""One frozen Hugging Face network, changed so that executors act in it and attention is ours.

The network stays what its authors wrote: its linear leaves are replaced by ones that ask the
current executor, and its attention function by one that asks the current `Attention`. A family is
admitted once a test shows that it equals the unchanged network.
Shapes: T rows of the stream, d hidden, N rows whose logits are wanted, V vocabulary.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import AttentionInterface

from core.errors import InvalidRequest
from models.nn.attention import Attention
from models.nn.executors import NOBODY, Executor
from models.nn.shape import Shape, path_of

FAMILIES = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
_OFFSET_GAIN = ("Gemma",)
_ATTENTION_NAME = "graftwork"


class _Call(NamedTuple):
    """Who acts in the forward that this thread is computing."""

    executor: Executor
    attention: Attention | None


_CALL: ContextVar[_Call] = ContextVar("graftwork_call")


class LinearLeaf(nn.Module):
    """A frozen linear place that lets the current executor act around its product."""

    def __init__(self, place: str, linear: nn.Linear) -> None:
        super().__init__()
        self.place = place
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., o) from (..., i)."""
        executor = _CALL.get().executor
        if executor is NOBODY:
            return F.linear(x, self.weight, self.bias)
        x_ti = executor.linear_input(self.place, x.reshape(-1, x.shape[-1]))
        y_to = F.linear(x_ti, self.weight, self.bias)
        return executor.linear(self.place, x_ti, y_to).view(*x.shape[:-1], -1)


def _attend(
    module: Any,
    query_1hth: Tensor,
    key_1kth: Tensor,
    value_1kth: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Hand one layer's attention to the current `Attention`; Transformers calls this by name."""
    attention = _CALL.get().attention
    if attention is None or attention_mask is not None or others.get("s_aux") is not None:
        raise RuntimeError("This attention only runs inside Backbone.hidden, without mask or sinks")
    output_thh = attention.attend(
        module.layer_idx,
        query_1hth[0],
        key_1kth[0],
        value_1kth[0],
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return output_thh[None], None


# The registry is global and by name. No mask function has this name, so none is ever built.
AttentionInterface.register(_ATTENTION_NAME, _attend)


@dataclass(frozen=True)
class Base:
    """A read-only view of the frozen base for methods; tensors come in float32."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    _network: Any

    def weight(self, place: str) -> Tensor:
        """Return the (out, in) weight of a linear place."""
        weight: Tensor = self._module(place).weight.detach().float()
        return weight

    def bias(self, place: str) -> Tensor | None:
        """Return the (out,) bias of a linear place, if it has one."""
        bias = self._module(place).bias
        return None if bias is None else bias.detach().float()

    def gain(self, place: str) -> Tensor:
        """Return the (d,) gain by which a norm multiplies, its family's offset included."""
        norm = self._module(place)
        gain: Tensor = norm.weight.detach().float()
        return 1.0 + gain if type(norm).__name__.startswith(_OFFSET_GAIN) else gain

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return (T, d): what the network's layers would be given for these ids (T,) int64."""
        embedded_td: Tensor = self._network.get_input_embeddings()(token_ids)
        return embedded_td.detach().float()

    def _module(self, place: str) -> Any:
        return self._network.get_submodule(path_of(place))


class Backbone:
    """The frozen base: hidden states and logits of a flat stream, with adapters at its places."""

    def __init__(self, network: Any) -> None:
        """Take over a Hugging Face network that was loaded for `AttentionInterface`'s name here."""
        self.config = network.config
        refuse_unknown_family(self.config)
        network.requires_grad_(requires_grad=False).eval()
        network.set_attn_implementation(_ATTENTION_NAME)
        self.shape = Shape.of(network)
        for place in self.shape.linears:
            _replace_leaf(network, place)
        self.network = network
        self.dtype: torch.dtype = network.dtype
        self.device: torch.device = network.device
        self.base = Base(self.shape, self.dtype, self.device, network)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: str = "cpu") -> "Backbone":
        """Load a folder in Hugging Face's format; `InvalidRequest` for an unknown family."""
        refuse_unknown_family(AutoConfig.from_pretrained(folder, local_files_only=True))
        network = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        return cls(network.to(device))

    def hidden(
        self, token_ids: Tensor, *, positions: Tensor, attention: Attention, executor: Executor
    ) -> Tensor:
        """Return the final-normed hidden states (T, d) of a stream of ids (T,) int64.

        `positions` (T,) int64 are those of each row in its own sequence; which rows see which is
        `attention`'s business.
        """
        token = _CALL.set(_Call(executor, attention))
        try:
            hidden_1td: Tensor = self.network.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False
            ).last_hidden_state
        finally:
            _CALL.reset(token)
        return hidden_1td[0]

    def logits(self, hidden_rows: Tensor, *, executor: Executor) -> Tensor:
        """Return (N, V) in the base's dtype from rows of `hidden`.

        The executor must be that of `hidden`, re-indexed by its `at` for the rows picked.
        """
        token = _CALL.set(_Call(executor, None))
        try:
            logits_nv: Tensor = self.network.lm_head(hidden_rows)
        finally:
            _CALL.reset(token)
        if (scaling := getattr(self.config, "logits_scaling", None)) is not None:
            logits_nv = logits_nv / scaling
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits_nv = cap * torch.tanh(logits_nv / cap)
        return logits_nv


def refuse_unknown_family(config: Any) -> None:
    """Raise `InvalidRequest` unless the family is one whose equality is tested."""
    if config.model_type not in FAMILIES:
        raise InvalidRequest(
            f"Base models of type {config.model_type!r} are not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}.",
            code="unsupported_base",
            param="base",
        )


def _replace_leaf(network: nn.Module, place: str) -> None:
    parent_path, _, name = path_of(place).rpartition(".")
    parent = network.get_submodule(parent_path)
    setattr(parent, name, LinearLeaf(place, network.get_submodule(path_of(place))))  # type: ignore[arg-type]


def pick_dtype(device: str = "cpu") -> torch.dtype:
    """Return bfloat16 where the device multiplies it at full speed, else float32."""
    if device != "cpu":
        return torch.bfloat16
    features = torch.cpu.get_capabilities()
    fast = any(features.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
