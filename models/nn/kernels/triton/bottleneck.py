"""`bottleneck` by kernels: down, activation and up in one pass over the rows.

One pass pays while all of a row's bottleneck fits a tile; wider ones are large products, which the
library does better. Shapes: t rows, d hidden, m bottleneck (or the sum of bottlenecks).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels import reference
from models.nn.kernels.triton.activations import activate, slope
from models.nn.kernels.triton.mixed import narrow_mixed, widen_mixed
from models.nn.kernels.triton.rows import dot, is_supported, load_tile, readable, store_tile
from models.nn.terms import Activation

_WIDEST = 128
_ROWS, _DEPTH = 32, 64


def bottleneck(
    y_td: Tensor,
    z_td: Tensor,
    *,
    down_md: Tensor,
    down_bias_m: Tensor,
    activation: Activation,
    up_dm: Tensor,
    weight: Tensor | float,
) -> Tensor:
    """See `reference.bottleneck`, which keeps what is too wide, and gradients of mixed rows."""
    tensors = (y_td, z_td, down_md, down_bias_m, up_dm)
    supported = is_supported(*tensors)
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if supported and isinstance(weight, Tensor) and not trains:
        inner_tm = narrow_mixed(
            z_td, down_md, weight_tr=weight, bias_r=down_bias_m, activation=activation
        )
        return widen_mixed(y_td, inner_tm, up_dm, weight_tr=weight)
    if supported and isinstance(weight, float) and len(down_md) <= _WIDEST:
        output_td: Tensor = apply(
            _Bottleneck, y_td, z_td, down_md, down_bias_m, up_dm, activation, weight
        )
        return output_td
    return reference.bottleneck(
        y_td,
        z_td,
        down_md=down_md,
        down_bias_m=down_bias_m,
        activation=activation,
        up_dm=up_dm,
        weight=weight,
    )


class _Bottleneck(torch.autograd.Function):
    """Keeps z, the factors and the numbers before the activation."""

    @staticmethod
    def forward(
        ctx: Any,
        y_td: Tensor,
        z_td: Tensor,
        down_md: Tensor,
        down_bias_m: Tensor,
        up_dm: Tensor,
        activation: Activation,
        scale: float,
    ) -> Tensor:
        y_td, z_td = readable(y_td), readable(z_td)
        down_md, up_dm = down_md.contiguous(), up_dm.contiguous()
        (rows, width), middle = z_td.shape, len(down_md)
        output_td = torch.empty(z_td.shape, dtype=z_td.dtype, device=z_td.device)
        before_tm = z_td.new_empty(rows, middle)
        _forward[(triton.cdiv(rows, _ROWS),)](
            y_td,
            z_td,
            down_md,
            down_bias_m,
            up_dm,
            output_td,
            before_tm,
            y_td.stride(0),
            z_td.stride(0),
            rows,
            width,
            middle,
            scale=scale,
            activation=activation,
            rows_a_tile=_ROWS,
            widest=max(16, triton.next_power_of_2(middle)),
            depth=_DEPTH,
        )
        ctx.save_for_backward(z_td, down_md, up_dm, before_tm)
        ctx.activation, ctx.scale = activation, scale
        return output_td

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor) -> tuple[Tensor | None, ...]:
        z_td, down_md, up_dm, before_tm = ctx.saved_tensors
        needs_y, needs_z, needs_down, needs_bias, needs_up, *_ = ctx.needs_input_grad
        grad_td = readable(grad_td)
        (rows, width), middle = z_td.shape, len(down_md)
        grad_z = torch.empty(z_td.shape, dtype=z_td.dtype, device=z_td.device)
        grad_before_tm, inner_tm = torch.empty_like(before_tm), torch.empty_like(before_tm)
        _backward[(triton.cdiv(rows, _ROWS),)](
            grad_td,
            before_tm,
            down_md,
            up_dm,
            grad_z,
            grad_before_tm,
            inner_tm,
            grad_td.stride(0),
            rows,
            width,
            middle,
            scale=ctx.scale,
            activation=ctx.activation,
            rows_a_tile=_ROWS,
            widest=max(16, triton.next_power_of_2(middle)),
            depth=_DEPTH,
        )
        return (
            grad_td if needs_y else None,
            grad_z if needs_z else None,
            grad_before_tm.T @ z_td if needs_down else None,
            grad_before_tm.sum(0) if needs_bias else None,
            grad_td.T @ inner_tm if needs_up else None,
            None,
            None,
        )


@triton.jit
def _forward(
    y: tl.tensor,
    z: tl.tensor,
    down: tl.tensor,
    bias: tl.tensor,
    up: tl.tensor,
    output: tl.tensor,
    before: tl.tensor,
    y_stride: tl.tensor,
    z_stride: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    middle: tl.tensor,
    scale: tl.tensor,
    activation: tl.constexpr,
    rows_a_tile: tl.constexpr,
    widest: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    rows_t = tl.program_id(0) * rows_a_tile + tl.arange(0, rows_a_tile)
    middle_m = tl.arange(0, widest)
    before_tm = tl.zeros((rows_a_tile, widest), tl.float32)
    for start in range(0, width, depth):
        inputs_d = start + tl.arange(0, depth)
        z_td = load_tile(z, rows_t, rows, z_stride, inputs_d, width, 1)
        down_dm = load_tile(down, inputs_d, width, 1, middle_m, middle, width)
        before_tm = dot(z_td, down_dm, before_tm)
    bias_m = tl.load(bias + middle_m, mask=middle_m < middle, other=0.0)
    before_tm += bias_m.to(tl.float32)[None, :]
    store_tile(before, rows_t, rows, middle, middle_m, middle, 1, before_tm)
    inner_tm = (activate(before_tm, activation) * scale).to(up.dtype.element_ty)
    for start in range(0, width, depth):
        outputs_d = start + tl.arange(0, depth)
        up_md = load_tile(up, middle_m, middle, 1, outputs_d, width, middle)
        y_td = load_tile(y, rows_t, rows, y_stride, outputs_d, width, 1)
        output_td = dot(inner_tm, up_md, y_td.to(tl.float32))
        store_tile(output, rows_t, rows, width, outputs_d, width, 1, output_td)


@triton.jit
def _backward(
    grad: tl.tensor,
    before: tl.tensor,
    down: tl.tensor,
    up: tl.tensor,
    grad_z: tl.tensor,
    grad_before: tl.tensor,
    inner: tl.tensor,
    grad_stride: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    middle: tl.tensor,
    scale: tl.tensor,
    activation: tl.constexpr,
    rows_a_tile: tl.constexpr,
    widest: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    rows_t = tl.program_id(0) * rows_a_tile + tl.arange(0, rows_a_tile)
    middle_m = tl.arange(0, widest)
    before_tm = load_tile(before, rows_t, rows, middle, middle_m, middle, 1).to(tl.float32)
    grad_tm = tl.zeros((rows_a_tile, widest), tl.float32)
    for start in range(0, width, depth):
        outputs_d = start + tl.arange(0, depth)
        grad_td = load_tile(grad, rows_t, rows, grad_stride, outputs_d, width, 1)
        up_dm = load_tile(up, outputs_d, width, middle, middle_m, middle, 1)
        grad_tm = dot(grad_td, up_dm, grad_tm)
    grad_tm = (grad_tm * scale * slope(before_tm, activation)).to(grad_before.dtype.element_ty)
    inner_tm = activate(before_tm, activation) * scale
    store_tile(grad_before, rows_t, rows, middle, middle_m, middle, 1, grad_tm)
    store_tile(inner, rows_t, rows, middle, middle_m, middle, 1, inner_tm)
    for start in range(0, width, depth):
        inputs_d = start + tl.arange(0, depth)
        down_md = load_tile(down, middle_m, middle, width, inputs_d, width, 1)
        grad_td = dot(grad_tm, down_md, tl.zeros((rows_a_tile, depth), tl.float32))
        store_tile(grad_z, rows_t, rows, width, inputs_d, width, 1, grad_td)
