"""The loss of labelled rows through a frozen head: logits live for one block, in one buffer.

Shapes: n rows, b rows of a block, d hidden, v vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.table import Weight

BLOCK = 64
"""Rows whose logits exist at once, as many for every block: see `rows`."""
_BUFFER = "logits"


def linear_cross_entropy(
    hidden_nd: Tensor, *, weight: Weight, targets_n: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.linear_cross_entropy`; the gradient is made in the forward."""
    pair: tuple[Tensor, Tensor] = apply(_Loss, hidden_nd, weight, targets_n)
    return pair


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight: Weight, targets_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses_n = hidden_nd.new_empty(len(hidden_nd), dtype=torch.float32)
        correct_n = torch.empty_like(targets_n, dtype=torch.bool)
        grad_nd = torch.empty_like(hidden_nd) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_nd), BLOCK):
            rows = slice(start, start + BLOCK)
            logits_bv = _logits(hidden_nd[rows], weight)
            targets_b = targets_n[rows]
            count = len(targets_b)
            correct_n[rows] = logits_bv[:count].argmax(-1) == targets_b
            log_bv = logits_bv[:count].float().log_softmax(-1)
            picked_b1 = targets_b[:, None]
            losses_n[rows] = log_bv.gather(1, picked_b1)[:, 0].neg_()
            if grad_nd is not None:
                shares_bv = log_bv.exp_()
                shares_bv.scatter_add_(1, picked_b1, -torch.ones_like(shares_bv[:, :1]))
                logits_bv[:count] = shares_bv
                logits_bv[count:] = 0
                grad_nd[rows] = (logits_bv @ weight.weight_oi)[:count]
        ctx.save_for_backward(grad_nd)
        ctx.mark_non_differentiable(correct_n)
        return losses_n, correct_n

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor, _: Tensor) -> tuple[Tensor | None, None, None]:
        (grad_nd,) = ctx.saved_tensors
        return (grad_nd * grad_n[:, None]).to(grad_nd.dtype), None, None


def _logits(hidden_bd: Tensor, weight: Weight) -> Tensor:
    """Return (BLOCK, v) in a buffer that is kept with the weight: fresh pages would cost more."""
    size = (BLOCK, len(weight.weight_oi))
    buffer = weight.kept.get(_BUFFER)
    if buffer is None or buffer.dtype is not hidden_bd.dtype:
        buffer = weight.kept[_BUFFER] = hidden_bd.new_empty(size)
    padded_bd = F.pad(hidden_bd, (0, 0, 0, BLOCK - len(hidden_bd)))
    torch.mm(padded_bd, weight.weight_oi.t(), out=buffer)
    if weight.bias_o is not None:
        buffer += weight.bias_o
    logits_bv: Tensor = buffer
    return logits_bv
