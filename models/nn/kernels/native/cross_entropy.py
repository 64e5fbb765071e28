"""Cross-entropy over a frozen head in C++, which takes the gradient along with the loss.

Shapes: n rows with a target, d hidden, v vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import INPUT_STEP, find, library, takes
from models.nn.kernels.native.multiply import may_round
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import Weight


def linear_cross_entropy(
    hidden_nd: Tensor, *, weight: Weight, targets_n: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference.linear_cross_entropy`; logits are not rounded, equal ones count as right."""
    if not (_takes(hidden_nd, weight) and _are_tokens(targets_n, hidden_nd, weight)):
        return PLAIN.linear_cross_entropy(hidden_nd, weight=weight, targets_n=targets_n)
    both: tuple[Tensor, Tensor] = apply(_CrossEntropy, hidden_nd, weight, targets_n)
    return both


def keeps_rows_apart(hidden_nd: Tensor, weight: Weight) -> bool:
    """Say whether a row's loss and gradient are the same bits here whatever rows are beside it."""
    return library() is not None and _takes(hidden_nd, weight)


def _takes(hidden_nd: Tensor, weight: Weight) -> bool:
    frozen = [weight.weight_oi, *([] if weight.bias_o is None else [weight.bias_o])]
    aligned = all(size % INPUT_STEP == 0 for size in weight.weight_oi.shape)
    fits = aligned and hidden_nd.shape[1] == weight.weight_oi.shape[1]
    return fits and takes(hidden_nd, *frozen) and (find().trains or may_round())


def _are_tokens(targets_n: Tensor, hidden_nd: Tensor, weight: Weight) -> bool:
    """Say whether there is a token of the vocabulary for each row: C++ reads what they name."""
    if targets_n.shape != hidden_nd.shape[:1] or targets_n.dtype is not torch.int64:
        return False
    if not len(targets_n):
        return True
    least, most = targets_n.aminmax()
    return bool(least >= 0 and most < len(weight.weight_oi))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight: Weight, targets_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight_vd, rows = weight.weight_oi, len(hidden_nd)
        losses_n, correct_n = torch.empty(rows), torch.empty(rows, dtype=torch.bool)
        grad_nd = torch.empty(hidden_nd.shape) if ctx.needs_input_grad[0] else None
        head = (weight_vd, weight_vd.stride(0), *weight_vd.shape, weight.bias_o)
        given = (hidden_nd, hidden_nd.stride(0), rows, targets_n.contiguous())
        find().call("cross_entropy", *head, *given, losses_n, correct_n, grad_nd)
        ctx.mark_non_differentiable(correct_n)
        ctx.save_for_backward(grad_nd)
        ctx.dtype = hidden_nd.dtype
        return losses_n, correct_n

    @staticmethod
    def backward(ctx: Any, grad_n: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (grad_nd,) = ctx.saved_tensors
        return (grad_nd * grad_n[:, None]).to(ctx.dtype), None, None
