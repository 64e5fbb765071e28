"""The surgery: leaves of a Hugging Face network that ask the current executor.

Shapes: T rows of the stream, i in features, o out features, d hidden, H query heads, K key heads,
h head dimension.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from models.nn.attention import Attention
from models.nn.executors import NOBODY, Executor
from models.nn.kernels import rows
from models.nn.kernels.plain.activate import Activation, activate
from models.nn.quantized import is_packed, linear, shared_linear
from models.nn.shape import HEAD, Shape, path_of

ATTENTION_NAME = "graftwork"
_OFFSET_GAIN = ("Gemma",)
_ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
}
"""By the class of Transformers' module."""


class _Call(NamedTuple):
    """Who acts in the forward that this thread is computing."""

    executor: Executor
    attention: Attention | None


_CALL: ContextVar[_Call] = ContextVar("graftwork_call")


@contextmanager
def act_in(executor: Executor, attention: Attention | None) -> Iterator[None]:
    """Let this executor and this attention act in the forwards of this thread."""
    token = _CALL.set(_Call(executor, attention))
    try:
        yield
    finally:
        _CALL.reset(token)


class LinearLeaf(nn.Module):
    """A frozen linear place that lets the current executor act around its product."""

    def __init__(self, place: str, module: Any) -> None:
        super().__init__()
        self.place = place
        self.weight = module.weight
        self.bias = module.bias
        self._product = linear if is_packed(module.weight) else F.linear

    def hold(self, weight_oi: nn.Parameter, *, product: Callable[..., Tensor]) -> None:
        """Take another form of the weight, and the product that reads it."""
        self.weight = weight_oi
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., o) from (..., i)."""
        executor = _CALL.get().executor
        if executor is NOBODY:
            return self._product(x, self.weight, self.bias)
        x_ti = executor.linear_input(self.place, x.reshape(-1, x.shape[-1]))
        y_to = self._choose_product()(x_ti, self.weight, self.bias)
        return executor.linear(self.place, x_ti, y_to).view(*x.shape[:-1], -1)

    def _choose_product(self) -> Callable[..., Tensor]:
        """Return the product for a stream that may be shared by jobs, or the plain one.

        Through its leaf the head only ever sees rows of one job.
        """
        if not torch.is_grad_enabled() or self.place == HEAD or self.weight.requires_grad:
            return self._product
        return shared_linear if is_packed(self.weight) else rows.linear


class NormLeaf(nn.Module):
    """A frozen RMS norm over the hidden size whose gain the current executor may replace."""

    gain_d: Tensor

    def __init__(self, place: str, norm: Any) -> None:
        super().__init__()
        self.place = place
        self.weight: Tensor = norm.weight
        self.eps = _epsilon(norm)
        self._offset = is_offset(norm)
        gain_d = self.weight.detach().float() + (1.0 if self._offset else 0.0)
        self.register_buffer("gain_d", gain_d, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (1, T, d) from (1, T, d); the order of operations is the family's own."""
        executor = _CALL.get().executor
        gain = self.gain_d
        if executor is not NOBODY:
            gain = executor.gain(self.place, self.gain_d, rows=x.shape[1])
        normed = rms(x, self)
        if self._offset:
            # Parameters may be replaced by others, which only `weight` knows.
            gain = 1.0 + self.weight.float() if gain is self.gain_d else gain
            return (normed * gain).to(x.dtype)
        gain = self.weight if gain is self.gain_d else gain.to(x.dtype)
        return gain * normed.to(x.dtype)


class ActivationLeaf(nn.Module):
    """A feed-forward's activation; in training on a CPU an element does not know its neighbours."""

    def __init__(self, name: Activation, module: nn.Module) -> None:
        super().__init__()
        self._name: Activation = name
        self._module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of x, in its dtype and shape."""
        trains = torch.is_grad_enabled() and x.is_cpu
        activated: Tensor = activate(x, name=self._name) if trains else self._module(x)
        return activated


def rms(x: Tensor, norm: Any) -> Tensor:
    """Return x over its root mean square along the last dimension, float32."""
    x32 = x.float()
    return x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + _epsilon(norm))


def is_offset(norm: nn.Module) -> bool:
    """Say whether the family multiplies by 1 + weight."""
    return type(norm).__name__.startswith(_OFFSET_GAIN)


def _epsilon(norm: Any) -> float:
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def replace_leaves(network: nn.Module, shape: Shape) -> None:
    """Put our leaves at every linear place, norm and activation, and listen at every sublayer."""
    for place in shape.linears:
        _replace(network, place, LinearLeaf(place, network.get_submodule(path_of(place))))
    for place in shape.norms:
        _replace(network, place, NormLeaf(place, network.get_submodule(path_of(place))))
    for place in shape.sublayers:
        module = network.get_submodule(path_of(place))
        for name, child in list(module.named_children()):
            if (activation := _ACTIVATIONS.get(type(child).__name__)) is not None:
                setattr(module, name, ActivationLeaf(activation, child))
        module.register_forward_hook(_listen(place), with_kwargs=True)


def _replace(network: nn.Module, place: str, leaf: nn.Module) -> None:
    parent_path, _, name = path_of(place).rpartition(".")
    setattr(network.get_submodule(parent_path), name, leaf)


def _listen(place: str) -> Callable[..., Any]:
    """Return a hook that lets the current executor change what a sublayer gives."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG001
        executor = _CALL.get().executor
        if executor is NOBODY:
            return None
        x_1td = args[0] if args else kwargs["hidden_states"]
        y_1td = output[0] if isinstance(output, tuple) else output
        y_td = y_1td[0]
        changed_td = executor.hidden(place, x_1td[0], y_td)
        if changed_td is y_td:
            return None
        return (changed_td[None], *output[1:]) if isinstance(output, tuple) else changed_td[None]

    return hook


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
    executor, attention = _CALL.get()
    if attention is None or attention_mask is not None or others.get("s_aux") is not None:
        raise RuntimeError("This attention only runs inside Backbone.hidden, without mask or sinks")
    query_hth = query_1hth[0]
    output_thh = attention.attend(
        module.layer_idx,
        query_hth,
        key_1kth[0],
        value_1kth[0],
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return executor.attention(module.layer_idx, query_hth, output_thh, scale=scaling)[None], None


# The registry is global and by name. No mask function has this name, so none is ever built.
AttentionInterface.register(ATTENTION_NAME, _attend)
