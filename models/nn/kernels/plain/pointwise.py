"""Norms, rotation, gates and vectors with gradients by hand: little is kept, nothing is remade.

Shapes: t rows, d hidden, m inner width, G heads side by side, h head dimension, o out features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.plain.activate import silu, silu_slope
from models.nn.kernels.table import Shift


def rms_norm(x_td: Tensor, *, gain: Tensor, epsilon: float) -> Tensor:
    """See `reference.rms_norm`."""
    y_td: Tensor = apply(_RmsNorm, x_td, gain, epsilon)
    return y_td


def add_rms_norm(
    x_td: Tensor, y_td: Tensor, *, gain: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    pair: tuple[Tensor, Tensor] = apply(_AddRmsNorm, x_td, y_td, gain, epsilon)
    return pair


def rotate(heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int) -> Tensor:
    """See `reference.rotate`."""
    turned_tgh: Tensor = apply(_Rotate, heads_tgh, cos_th, sin_th, rotated)
    return turned_tgh


def swiglu(gate_up_tm: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    y_tm: Tensor = apply(_SwiGlu, gate_up_tm)
    return y_tm


def scale_shift(y_to: Tensor, *, shifts: Sequence[Shift]) -> Tensor:
    """See `reference.scale_shift`."""
    pieces = [_Piece(slice(*shift.rows), slice(*shift.columns)) for shift in shifts]
    vectors = [vector for shift in shifts for vector in (shift.scale_o, shift.shift_o)]
    z_to: Tensor = apply(_ScaleShift, y_to, pieces, *vectors)
    return z_to


def _normed(x_td: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return (t, d) in x's dtype, and what x is multiplied by, (t, 1) float32."""
    x32_td = x_td.float()
    square_t1 = x32_td.square().mean(-1, keepdim=True)
    # An overflow is to be no number, or a run that has diverged looks like one that stands still.
    square_t1 += square_t1 - square_t1
    factor_t1 = square_t1.add_(epsilon).rsqrt_()
    return (x32_td * factor_t1).to(x_td.dtype).mul_(gain), factor_t1


def _norm_back(
    grad_td: Tensor, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a norm's input (t, d) float32 and of its gain."""
    x_td, gain, factor_t1 = saved
    unit_td = x_td.float() * factor_t1
    grad32_td = grad_td.float()
    grad_gain = None
    if needs[1]:
        grad_gain = grad32_td * unit_td
        grad_gain = grad_gain if gain.dim() > 1 else grad_gain.sum(0)
    if not needs[0]:
        return None, grad_gain
    pulled_td = grad32_td * gain
    mean_t1 = (pulled_td * unit_td).mean(-1, keepdim=True)
    return pulled_td.sub_(unit_td.mul_(mean_t1)).mul_(factor_t1), grad_gain


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_td: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        y_td, factor_t1 = _normed(x_td, gain.to(x_td.dtype), epsilon)
        ctx.save_for_backward(x_td, gain, factor_t1)
        return y_td

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_gain = _norm_back(grad_td, ctx.saved_tensors, ctx.needs_input_grad)
        grad_x = None if grad_x is None else grad_x.to(grad_td.dtype)
        return grad_x, grad_gain, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_td: Tensor, y_td: Tensor, gain: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        sum_td = x_td + y_td
        normed_td, factor_t1 = _normed(sum_td, gain.to(x_td.dtype), epsilon)
        ctx.save_for_backward(sum_td, gain, factor_t1)
        return normed_td, sum_td

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor, grad_sum_td: Tensor) -> tuple[Tensor | None, ...]:
        needs = (any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[2])
        grad_x, grad_gain = _norm_back(grad_td, ctx.saved_tensors, needs)
        grad_x = None if grad_x is None else grad_x.add_(grad_sum_td).to(grad_td.dtype)
        return grad_x, grad_x, grad_gain, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor, rotated: int
    ) -> Tensor:
        ctx.rotated = rotated
        ctx.save_for_backward(cos_th, sin_th)
        return _turn(heads_tgh, cos_th, sin_th, rotated)

    @staticmethod
    def backward(ctx: Any, grad_tgh: Tensor) -> tuple[Tensor, None, None, None]:
        cos_th, sin_th = ctx.saved_tensors
        return _turn(grad_tgh, cos_th, -sin_th, ctx.rotated), None, None, None


def _turn(heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor, rotated: int) -> Tensor:
    half = heads_tgh.shape[-1] // 2
    cos_t1h, sin_t1h = cos_th[:, None, :half], sin_th[:, None, :half]
    first_tgh, second_tgh = heads_tgh[:, :rotated].chunk(2, dim=-1)
    turned_tgh = torch.empty_like(heads_tgh)
    turned_tgh[:, rotated:] = heads_tgh[:, rotated:]
    turned_tgh[:, :rotated, :half] = torch.addcmul(first_tgh * cos_t1h, second_tgh, -sin_t1h)
    turned_tgh[:, :rotated, half:] = torch.addcmul(second_tgh * cos_t1h, first_tgh, sin_t1h)
    return turned_tgh


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_tm: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_tm)
        gate_tm, up_tm = gate_up_tm.chunk(2, dim=-1)
        return silu(gate_tm).mul_(up_tm).to(gate_up_tm.dtype)

    @staticmethod
    def backward(ctx: Any, grad_tm: Tensor) -> Tensor:
        (gate_up_tm,) = ctx.saved_tensors
        gate_tm, up_tm = gate_up_tm.chunk(2, dim=-1)
        both_tm = torch.empty_like(gate_up_tm)
        grad_gate_tm, grad_up_tm = both_tm.chunk(2, dim=-1)
        grad_up_tm.copy_(silu(gate_tm).mul_(grad_tm))
        grad_gate_tm.copy_(silu_slope(gate_tm).mul_(up_tm).mul_(grad_tm))
        return both_tm


class _Piece(NamedTuple):
    rows: slice
    columns: slice


class _ScaleShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_to: Tensor, pieces: list[_Piece], *vectors: Tensor | None) -> Tensor:
        z_to = y_to.clone()
        for piece, scale_o, shift_o in zip(pieces, vectors[::2], vectors[1::2], strict=True):
            own_no = z_to[piece]
            if scale_o is not None:
                own_no *= scale_o
            if shift_o is not None:
                own_no += shift_o
        scales = vectors[::2]
        trained = any(ctx.needs_input_grad[2::2])
        ctx.pieces = pieces
        ctx.save_for_backward(y_to if trained else None, *scales)
        return z_to

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        y_to, *scales = ctx.saved_tensors
        grads: list[Tensor | None] = []
        changed_to = grad_to.clone() if ctx.needs_input_grad[0] else None
        for index, (piece, scale_o) in enumerate(zip(ctx.pieces, scales, strict=True)):
            needs_scale, needs_shift = ctx.needs_input_grad[2 + 2 * index : 4 + 2 * index]
            grad_no = grad_to[piece]
            grads.append((grad_no.float() * y_to[piece]).sum(0) if needs_scale else None)
            grads.append(grad_no.float().sum(0) if needs_shift else None)
            if changed_to is not None and scale_o is not None:
                changed_to[piece] *= scale_o
        return changed_to, None, *grads
