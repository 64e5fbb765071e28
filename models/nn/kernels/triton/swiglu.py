"""`swiglu` by kernels over gates and ups that lie side by side.

Shapes: t rows, m inner width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.triton.rows import is_supported, readable

_WIDTH = 1024


def swiglu(gate_up_tm: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    if not is_supported(gate_up_tm):
        return PLAIN.swiglu(gate_up_tm)
    product_tm: Tensor = apply(_SwiGlu, gate_up_tm)
    return product_tm


class _SwiGlu(torch.autograd.Function):
    """Keeps gates and ups."""

    @staticmethod
    def forward(ctx: Any, gate_up_tm: Tensor) -> Tensor:
        gate_up_tm = readable(gate_up_tm)
        rows, width = gate_up_tm.shape[0], gate_up_tm.shape[1] // 2
        product_tm = gate_up_tm.new_empty(rows, width)
        _forward[(rows, triton.cdiv(width, _WIDTH))](
            gate_up_tm, product_tm, gate_up_tm.stride(0), width, block=_WIDTH
        )
        ctx.save_for_backward(gate_up_tm)
        return product_tm

    @staticmethod
    def backward(ctx: Any, grad_tm: Tensor) -> Tensor:
        (gate_up_tm,) = ctx.saved_tensors
        grad_tm = readable(grad_tm)
        rows, width = grad_tm.shape
        result_tm: Tensor = gate_up_tm.new_empty(rows, 2 * width)
        _backward[(rows, triton.cdiv(width, _WIDTH))](
            grad_tm,
            gate_up_tm,
            result_tm,
            grad_tm.stride(0),
            gate_up_tm.stride(0),
            width,
            block=_WIDTH,
        )
        return result_tm


@triton.jit
def _forward(
    gate_up: tl.tensor,
    product: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    parts_m = tl.program_id(1) * block + tl.arange(0, block)
    held_m = parts_m < width
    gate_m = tl.load(gate_up + row * stride + parts_m, mask=held_m, other=0.0).to(tl.float32)
    up_m = tl.load(gate_up + row * stride + width + parts_m, mask=held_m, other=0.0)
    kind = product.dtype.element_ty
    # The plain form rounds between its two steps.
    open_m = (gate_m * tl.sigmoid(gate_m)).to(kind).to(tl.float32)
    tl.store(product + row * width + parts_m, (open_m * up_m.to(tl.float32)).to(kind), mask=held_m)


@triton.jit
def _backward(
    grad: tl.tensor,
    gate_up: tl.tensor,
    result: tl.tensor,
    grad_stride: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    parts_m = tl.program_id(1) * block + tl.arange(0, block)
    held_m = parts_m < width
    grad_m = tl.load(grad + row * grad_stride + parts_m, mask=held_m, other=0.0).to(tl.float32)
    gate_m = tl.load(gate_up + row * stride + parts_m, mask=held_m, other=0.0).to(tl.float32)
    up_m = tl.load(gate_up + row * stride + width + parts_m, mask=held_m, other=0.0)
    share_m = tl.sigmoid(gate_m)
    slope_m = share_m * (1.0 + gate_m * (1.0 - share_m))
    kind = result.dtype.element_ty
    target = result + row * 2 * width + parts_m
    tl.store(target, (grad_m * up_m.to(tl.float32) * slope_m).to(kind), mask=held_m)
    tl.store(target + width, (grad_m * gate_m * share_m).to(kind), mask=held_m)
