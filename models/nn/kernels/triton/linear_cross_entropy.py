"""`linear_cross_entropy` by liger-kernel: logits in chunks, their gradient taken in the forward.

Shapes: n rows with a target, d hidden.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import Weight
from models.nn.kernels.triton.rows import is_supported


def is_available() -> bool:
    """Say whether the library is installed; the `gpu` extra brings it."""
    return find_spec("liger_kernel") is not None


def linear_cross_entropy(
    hidden_nd: Tensor, *, weight: Weight, targets_n: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.linear_cross_entropy`."""
    base = [weight.weight_oi, *([] if weight.bias_o is None else [weight.bias_o])]
    trains = any(tensor.requires_grad for tensor in base)
    if trains or not len(targets_n) or not is_supported(hidden_nd, *base):
        return PLAIN.linear_cross_entropy(hidden_nd, weight=weight, targets_n=targets_n)
    pair: tuple[Tensor, Tensor] = apply(_LinearCrossEntropy, hidden_nd, weight, targets_n)
    return pair


class _LinearCrossEntropy(torch.autograd.Function):
    """Keeps the gradient of every row's own loss."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight: Weight, targets_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The library computes gradients where its input says that it wants one.
        own_nd = hidden_nd.detach().requires_grad_(ctx.needs_input_grad[0])
        losses_n, _, _, predicted_n, grad_nd, *_ = _library().fused_linear_cross_entropy_forward(
            own_nd,
            weight.weight_oi,
            targets_n,
            bias=weight.bias_o,
            reduction="none",
            return_predicted_tokens=True,
        )
        hits_n = predicted_n == targets_n
        ctx.save_for_backward(grad_nd)
        ctx.mark_non_differentiable(hits_n)
        return losses_n, hits_n

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (grad_nd,) = ctx.saved_tensors
        return grad_nd * grad_n[:, None].to(grad_nd.dtype), None, None


@cache
def _library() -> Any:
    return import_module("liger_kernel.ops.fused_linear_cross_entropy")
