"""Activations of which an element's bits depend on nothing but the element; for training on a CPU.

torch computes `silu` and `gelu` by vectors, and what remains of a thread's share by other code,
whose last bits differ; where shares end depends on how many rows and threads there are. Its `exp`,
`tanh`, `erf` and arithmetic were found to have the same bits either way. All is in float32. These
are no ops of the table: a network's own forward calls them where ours has `swiglu`.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.nn.autograd import apply

Activation = Literal["silu", "gelu", "gelu_tanh"]
_CUBIC = 0.044715


def activate(x: Tensor, *, name: Activation) -> Tensor:
    """Return the activation of x, in its dtype and shape."""
    y: Tensor = apply(_Activate, x, name)
    return y


def silu(x: Tensor) -> Tensor:
    """Return x over 1 + exp(-x), float32 (Elfwing et al., arXiv 1702.03118, section 2.1)."""
    x32 = x.float()
    denominator = x32.neg().exp_().add_(1)
    return torch.div(x32, denominator, out=denominator)


def silu_slope(x: Tensor) -> Tensor:
    """Return the derivative of `silu`, float32: s (1 + x (1 - s)) with the sigmoid s."""
    x32 = x.float()
    sigmoid = x32.neg().exp_().add_(1).reciprocal_()
    return (1 - sigmoid).mul_(x32).add_(1).mul_(sigmoid)


def gelu(x: Tensor) -> Tensor:
    """Return x times the normal distribution's mass below x, float32 (arXiv 1606.08415)."""
    x32 = x.float()
    return _normal_mass(x32).mul_(x32)


def gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of `gelu`, float32."""
    x32 = x.float()
    density = x32.square().mul_(-0.5).exp_().mul_(1 / sqrt(2 * pi))
    return density.mul_(x32).add_(_normal_mass(x32))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return x / 2 (1 + tanh u) with u of `_inner`, float32 (arXiv 1606.08415, section 2)."""
    x32 = x.float()
    return _inner(x32).tanh_().add_(1).mul_(x32).mul_(0.5)


def gelu_tanh_slope(x: Tensor) -> Tensor:
    """Return the derivative of `gelu_tanh`, float32."""
    x32 = x.float()
    tanh = _inner(x32).tanh_()
    inner_slope = x32.square().mul_(3 * _CUBIC).add_(1).mul_(sqrt(2 / pi))
    curved = (1 - tanh.square()).mul_(inner_slope).mul_(x32)
    return curved.add_(tanh).add_(1).mul_(0.5)


def _normal_mass(x32: Tensor) -> Tensor:
    return x32.mul(sqrt(0.5)).erf_().add_(1).mul_(0.5)


def _inner(x32: Tensor) -> Tensor:
    return x32.square().mul_(_CUBIC).add_(1).mul_(x32).mul_(sqrt(2 / pi))


class _Form(NamedTuple):
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


_FORMS: dict[Activation, _Form] = {
    "silu": _Form(silu, silu_slope),
    "gelu": _Form(gelu, gelu_slope),
    "gelu_tanh": _Form(gelu_tanh, gelu_tanh_slope),
}


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: Activation) -> Tensor:
        ctx.slope = _FORMS[name].slope
        ctx.save_for_backward(x)
        return _FORMS[name].value(x).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.slope(x).mul_(grad).to(x.dtype), None
