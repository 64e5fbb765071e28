"""Products of which a row's bits do not depend on the rows beside it.

A matrix library picks its way of summing by the height of a product, so a row that is computed
among others can differ in its last bit from the same row alone. Where there is a product of our own
it is taken; else low streams are cut into blocks of one fixed height, the last one filled up with
zeros: at a fixed height a row's result depends neither on its place nor on its neighbours. A taller
stream is computed in one piece, and so is any on a GPU, where a block would cost a launch and no
run promises its bits.
Shapes: t rows, i in features, o out features, b rows of a block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import multiply as own

HEIGHT = 64
"""Rows of a block."""
SHARED_ROWS = 512
"""Streams up to this height are cut; jobs share those only, and bring no more. A multiple of
`HEIGHT`."""
OWN_ROWS = 1024
"""Jobs may share streams up to this height where all products are our own: a job's micro-batch has
as many rows by default. What has fewer shares no more than `SHARED_ROWS` with its like."""


def linear(x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """Return (t, o) in x's dtype, as `F.linear`; gradients flow to x alone.

    Row t of the product and of x's gradient is a function of row t, and, if the product is not our
    own, of whether there are more than `SHARED_ROWS` rows.
    """
    product_to: Tensor = apply(_Linear, x_ti, weight_oi, bias_o)
    return product_to


def multiply(x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """Return what `linear` does, without a gradient."""
    rows = x_ti.shape[0]
    if own.takes(x_ti, weight_oi):
        return own.multiply(x_ti, weight_oi, bias_o)
    if rows > SHARED_ROWS or x_ti.device.type != "cpu":
        return F.linear(x_ti, weight_oi, bias_o)
    product_to = x_ti.new_empty(-(-rows // HEIGHT) * HEIGHT, weight_oi.shape[0])
    for start in range(0, rows, HEIGHT):
        block_bi = x_ti[start : start + HEIGHT]
        if len(block_bi) < HEIGHT:
            block_bi = F.pad(block_bi, (0, 0, 0, HEIGHT - len(block_bi)))
        block_bo = product_to[start : start + HEIGHT]
        if bias_o is None:
            torch.mm(block_bi, weight_oi.t(), out=block_bo)
        else:
            torch.addmm(bias_o, block_bi, weight_oi.t(), out=block_bo)
    return product_to[:rows]


class _Linear(torch.autograd.Function):
    """y = x W^T + b over a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_oi)
        return multiply(x_ti, weight_oi, bias_o)

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (weight_oi,) = ctx.saved_tensors
        return multiply(grad_to, weight_oi.t()), None, None
