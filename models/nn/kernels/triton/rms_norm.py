"""`rms_norm` and `add_rms_norm` by kernels, a row a program.

Shapes: t rows, d hidden.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.triton.rows import is_supported, readable


def rms_norm(x_td: Tensor, *, gain: Tensor, epsilon: float) -> Tensor:
    """See `reference.rms_norm`."""
    if not is_supported(x_td):
        return PLAIN.rms_norm(x_td, gain=gain, epsilon=epsilon)
    normed_td: Tensor
    normed_td, _ = apply(_AddRmsNorm, x_td, None, gain, epsilon)
    return normed_td


def add_rms_norm(
    x_td: Tensor, y_td: Tensor, *, gain: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    if not is_supported(x_td, y_td):
        return PLAIN.add_rms_norm(x_td, y_td, gain=gain, epsilon=epsilon)
    pair: tuple[Tensor, Tensor] = apply(_AddRmsNorm, x_td, y_td, gain, epsilon)
    return pair


class _AddRmsNorm(torch.autograd.Function):
    """Keeps the stream that it normed; without y that is x, and there is no sum to give."""

    @staticmethod
    def forward(
        ctx: Any, x_td: Tensor, y_td: Tensor | None, gain: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor | None]:
        x_td, gain = readable(x_td), readable(gain)
        y_td = None if y_td is None else readable(y_td)
        rows, width = x_td.shape
        normed_td = torch.empty(rows, width, dtype=x_td.dtype, device=x_td.device)
        sum_td = x_td if y_td is None else torch.empty_like(normed_td)
        roots_t = torch.empty(rows, dtype=torch.float32, device=x_td.device)
        _forward[(rows,)](
            x_td,
            x_td if y_td is None else y_td,
            gain,
            sum_td,
            normed_td,
            roots_t,
            x_td.stride(0),
            0 if y_td is None else y_td.stride(0),
            gain.stride(0) if gain.dim() > 1 else 0,
            width,
            epsilon,
            adds=y_td is not None,
            widest=triton.next_power_of_2(width),
        )
        ctx.save_for_backward(sum_td, gain, roots_t)
        ctx.adds = y_td is not None
        ctx.set_materialize_grads(False)
        return normed_td, sum_td if ctx.adds else None

    @staticmethod
    def backward(
        ctx: Any, grad_td: Tensor | None, grad_sum_td: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        sum_td, gain, roots_t = ctx.saved_tensors
        needs_x, needs_y, needs_gain, _ = ctx.needs_input_grad
        if grad_td is None:
            return grad_sum_td, grad_sum_td if ctx.adds else None, None, None
        grad_gain = None
        if needs_gain:
            normed_td = (sum_td.float() * roots_t[:, None]).to(sum_td.dtype)
            grad_gain = (grad_td.float() * normed_td.float()).to(gain.dtype)
            grad_gain = grad_gain.sum(0) if gain.dim() == 1 else grad_gain
        grad_x = None
        if needs_x or needs_y:
            grad_td = readable(grad_td)
            grad_sum_td = grad_td if grad_sum_td is None else readable(grad_sum_td)
            rows, width = sum_td.shape
            grad_x = torch.empty(rows, width, dtype=sum_td.dtype, device=sum_td.device)
            _backward[(rows,)](
                grad_td,
                grad_sum_td,
                sum_td,
                gain,
                roots_t,
                grad_x,
                grad_td.stride(0),
                grad_sum_td.stride(0),
                sum_td.stride(0),
                gain.stride(0) if gain.dim() > 1 else 0,
                width,
                adds=grad_sum_td is not grad_td,
                widest=triton.next_power_of_2(width),
            )
        return grad_x if needs_x else None, grad_x if needs_y else None, grad_gain, None


@triton.jit
def _forward(
    x: tl.tensor,
    y: tl.tensor,
    gain: tl.tensor,
    sums: tl.tensor,
    normed: tl.tensor,
    roots: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    gain_stride: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    adds: tl.constexpr,
    widest: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    parts_d = tl.arange(0, widest)
    held_d = parts_d < width
    x_d = tl.load(x + row * x_stride + parts_d, mask=held_d, other=0.0).to(tl.float32)
    kind = normed.dtype.element_ty
    if adds:
        x_d += tl.load(y + row * y_stride + parts_d, mask=held_d, other=0.0).to(tl.float32)
        rounded_d = x_d.to(kind)
        tl.store(sums + row * width + parts_d, rounded_d, mask=held_d)
        x_d = rounded_d.to(tl.float32)
    square = tl.sum(x_d * x_d, axis=0) / width
    square += square - square  # of an infinity NaN, where 1 / root would hide it
    root = 1.0 / tl.sqrt(square + epsilon)
    tl.store(roots + row, root)
    gain_d = tl.load(gain + row * gain_stride + parts_d, mask=held_d, other=0.0)
    product_d = (x_d * root).to(kind).to(tl.float32) * gain_d.to(kind).to(tl.float32)
    tl.store(normed + row * width + parts_d, product_d.to(kind), mask=held_d)


@triton.jit
def _backward(
    grad: tl.tensor,
    grad_sum: tl.tensor,
    sums: tl.tensor,
    gain: tl.tensor,
    roots: tl.tensor,
    grad_x: tl.tensor,
    grad_stride: tl.tensor,
    grad_sum_stride: tl.tensor,
    sums_stride: tl.tensor,
    gain_stride: tl.tensor,
    width: tl.tensor,
    adds: tl.constexpr,
    widest: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    parts_d = tl.arange(0, widest)
    held_d = parts_d < width
    grad_d = tl.load(grad + row * grad_stride + parts_d, mask=held_d, other=0.0).to(tl.float32)
    gain_d = tl.load(gain + row * gain_stride + parts_d, mask=held_d, other=0.0)
    sum_d = tl.load(sums + row * sums_stride + parts_d, mask=held_d, other=0.0).to(tl.float32)
    root = tl.load(roots + row)
    grad_d *= gain_d.to(grad_x.dtype.element_ty).to(tl.float32)
    normed_d = sum_d * root
    total_d = root * (grad_d - normed_d * (tl.sum(grad_d * normed_d, axis=0) / width))
    if adds:
        total_d += tl.load(grad_sum + row * grad_sum_stride + parts_d, mask=held_d, other=0.0).to(
            tl.float32
        )
    tl.store(grad_x + row * width + parts_d, total_d.to(grad_x.dtype.element_ty), mask=held_d)
