"""Norms, rotations, gates and scales in C++: one pass over memory each, with their gradients.

Shapes: t rows of a stream, d hidden, G heads side by side, h head dimension, m inner width, o out
features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import find, takes
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import Shift


def rms_norm(x_td: Tensor, *, gain: Tensor, epsilon: float) -> Tensor:
    """See `reference.rms_norm`; rounded once, at the end."""
    if not takes_norm(x_td, gain):
        return PLAIN.rms_norm(x_td, gain=gain, epsilon=epsilon)
    normed_td: Tensor = apply(_RmsNorm, x_td, gain, epsilon)
    return normed_td


def add_rms_norm(
    x_td: Tensor, y_td: Tensor, *, gain: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`; the sum is rounded before it is normed."""
    if not (takes_norm(x_td, gain) and takes(y_td) and x_td.shape == y_td.shape):
        return PLAIN.add_rms_norm(x_td, y_td, gain=gain, epsilon=epsilon)
    both: tuple[Tensor, Tensor] = apply(_AddRmsNorm, x_td, y_td, gain, epsilon)
    return both


def rotate(heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int) -> Tensor:
    """See `reference.rotate`."""
    if not takes_heads(heads_tgh, cos_th, sin_th):
        return PLAIN.rotate(heads_tgh, cos_th=cos_th, sin_th=sin_th, rotated=rotated)
    turned_tgh: Tensor = apply(_Rotate, heads_tgh, cos_th, sin_th, rotated)
    return turned_tgh


def swiglu(gate_up_tm: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    if not takes_gates(gate_up_tm):
        return PLAIN.swiglu(gate_up_tm)
    inner_tm: Tensor = apply(_SwiGlu, gate_up_tm)
    return inner_tm


def scale_shift(y_to: Tensor, *, shifts: Sequence[Shift]) -> Tensor:
    """See `reference.scale_shift`; scales are not rounded to bfloat16."""
    aligned = all(edge % 16 == 0 for piece in shifts for edge in piece.columns)
    if not (aligned and takes(y_to)):
        return PLAIN.scale_shift(y_to, shifts=shifts)
    vectors = [vector for piece in shifts for vector in (piece.scale_o, piece.shift_o)]
    scaled_to: Tensor = apply(_ScaleShift, y_to, shifts, *vectors)
    return scaled_to


def takes_heads(heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor) -> bool:
    """Say whether these heads are turned here."""
    dimension = heads_tgh.shape[-1]
    rows = heads_tgh.stride(1) == dimension and cos_th.is_contiguous() and sin_th.is_contiguous()
    alike = cos_th.shape == sin_th.shape == (len(heads_tgh), dimension)
    return rows and alike and takes(heads_tgh, cos_th, sin_th) and dimension % 32 == 0


def takes_gates(gate_up_tm: Tensor) -> bool:
    """Say whether the inner states of these gates and ups are computed here."""
    return takes(gate_up_tm) and gate_up_tm.shape[1] % 32 == 0


def takes_norm(x_td: Tensor, gain: Tensor) -> bool:
    """Say whether rows are normed here, with this gain."""
    gains = gain.dtype in (torch.bfloat16, torch.float32) and gain.stride(-1) == 1
    alike = gain.shape in (x_td.shape[-1:], x_td.shape)
    return gains and alike and takes(x_td) and x_td.shape[-1] % 16 == 0


def _gain(gain: Tensor) -> tuple[Tensor, int, int]:
    return gain, gain.stride(0) if gain.dim() == 2 else 0, gain.dtype is torch.float32


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_td: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        normed_td, rstd_t = _norm(x_td, None, None, gain, epsilon)
        ctx.save_for_backward(x_td, rstd_t, gain)
        return normed_td

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_td, rstd_t, gain = ctx.saved_tensors
        grads = _norm_gradients(grad_td, None, x_td, rstd_t, gain, trained=ctx.needs_input_grad[1])
        return *grads, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_td: Tensor, y_td: Tensor, gain: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        sum_td = torch.empty(x_td.shape, dtype=x_td.dtype)
        normed_td, rstd_t = _norm(x_td, y_td, sum_td, gain, epsilon)
        ctx.save_for_backward(sum_td, rstd_t, gain)
        return normed_td, sum_td

    @staticmethod
    def backward(
        ctx: Any, grad_td: Tensor | None, passed_td: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if grad_td is None:
            return passed_td, passed_td, None, None
        sum_td, rstd_t, gain = ctx.saved_tensors
        trained = ctx.needs_input_grad[2]
        grad_x_td, grad_gain = _norm_gradients(
            grad_td, passed_td, sum_td, rstd_t, gain, trained=trained
        )
        return grad_x_td, grad_x_td, grad_gain, None


def _norm(
    x_td: Tensor, y_td: Tensor | None, sum_td: Tensor | None, gain: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the norm of x, or of x + y which is left in `sum_td`, and 1 / rms."""
    rows, width = x_td.shape
    normed_td, rstd_t = torch.empty(x_td.shape, dtype=x_td.dtype), torch.empty(rows)
    added = (None, 0) if y_td is None else (y_td, y_td.stride(0))
    place = (x_td, x_td.stride(0), *added, sum_td, *_gain(gain))
    find().call("norm_forward", *place, epsilon, rows, width, normed_td, rstd_t)
    return normed_td, rstd_t


def _norm_gradients(
    grad_td: Tensor,
    passed_td: Tensor | None,
    x_td: Tensor,
    rstd_t: Tensor,
    gain: Tensor,
    *,
    trained: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x, which `passed_td` is added to, and of the gain."""
    grad_td = dense_rows(grad_td)
    passed: tuple[Tensor | None, int] = (None, 0)
    if passed_td is not None:
        passed_td = dense_rows(passed_td)
        passed = (passed_td, passed_td.stride(0))
    rows, width = x_td.shape
    grad_x_td = torch.empty(x_td.shape, dtype=x_td.dtype)
    grad_gain = torch.empty(gain.shape) if trained else None
    find().call(
        "norm_backward",
        *(grad_td, grad_td.stride(0), *passed, x_td, x_td.stride(0), rstd_t, *_gain(gain)),
        *(rows, width, grad_x_td, grad_gain, width if gain.dim() == 2 else 0),
    )
    return grad_x_td, grad_gain if grad_gain is None else grad_gain.to(gain.dtype)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor, rotated: int
    ) -> Tensor:
        ctx.angles, ctx.rotated = (cos_th, sin_th), rotated
        return _turned(heads_tgh, ctx.angles, rotated, direction=1.0)

    @staticmethod
    def backward(ctx: Any, grad_tgh: Tensor) -> tuple[Tensor, None, None, None]:
        return turned_back(grad_tgh, ctx.angles, ctx.rotated), None, None, None


def turned_back(grad_tgh: Tensor, angles: tuple[Tensor, Tensor], rotated: int) -> Tensor:
    """Return the gradient of heads from that of the heads that `rotate` turned by these angles."""
    if grad_tgh.stride(1) != grad_tgh.shape[2] or grad_tgh.stride(2) != 1:
        grad_tgh = grad_tgh.contiguous()
    return _turned(grad_tgh, angles, rotated, direction=-1.0)


def _turned(
    heads_tgh: Tensor, angles: tuple[Tensor, Tensor], rotated: int, *, direction: float
) -> Tensor:
    rows, heads, dimension = heads_tgh.shape
    turned_tgh = torch.empty(heads_tgh.shape, dtype=heads_tgh.dtype)
    sizes = (rows, heads, rotated, dimension)
    find().call("rotate", heads_tgh, heads_tgh.stride(0), *angles, *sizes, direction, turned_tgh)
    return turned_tgh


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_tm: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_tm)
        rows, width = gate_up_tm.shape[0], gate_up_tm.shape[1] // 2
        inner_tm = torch.empty(rows, width, dtype=gate_up_tm.dtype)
        find().call("swiglu_forward", gate_up_tm, gate_up_tm.stride(0), rows, width, inner_tm)
        return inner_tm

    @staticmethod
    def backward(ctx: Any, grad_tm: Tensor) -> Tensor:
        (gate_up_tm,) = ctx.saved_tensors
        grad_tm = dense_rows(grad_tm)
        result_tm = torch.empty(gate_up_tm.shape, dtype=gate_up_tm.dtype)
        given = (grad_tm, grad_tm.stride(0), gate_up_tm, gate_up_tm.stride(0))
        find().call("swiglu_backward", *given, *grad_tm.shape, result_tm)
        return result_tm


class _ScaleShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_to: Tensor, shifts: Sequence[Shift], *vectors: Tensor | None) -> Tensor:
        floats = [None if vector is None else vector.float().contiguous() for vector in vectors]
        ctx.shifts, ctx.floats = shifts, floats
        ctx.dtypes = [None if vector is None else vector.dtype for vector in vectors]
        if any(ctx.needs_input_grad[2::2]):
            ctx.save_for_backward(y_to)
        scaled_to = y_to.clone(memory_format=torch.contiguous_format)
        for index, piece in enumerate(shifts):
            own, target = _piece(y_to, piece), _piece(scaled_to, piece)
            given = (own, own.stride(0), *floats[2 * index : 2 * index + 2], *own.shape)
            find().call("scale_forward", *given, target, target.stride(0))
        return scaled_to

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        grad_to = dense_rows(grad_to)
        y_to = ctx.saved_tensors[0] if ctx.saved_tensors else grad_to
        wanted, grads = ctx.needs_input_grad, []
        result_to = grad_to.clone(memory_format=torch.contiguous_format) if wanted[0] else None
        for index, piece in enumerate(ctx.shifts):
            at = 2 * index
            grad, y = _piece(grad_to, piece), _piece(y_to, piece)
            result: tuple[Tensor | None, int] = (None, 0)
            if result_to is not None:
                result = (_piece(result_to, piece), result_to.stride(0))
            vectors = [
                torch.empty(grad.shape[1]) if wanted[2 + at + side] else None for side in (0, 1)
            ]
            given = (grad, grad.stride(0), y, y.stride(0), ctx.floats[at], *grad.shape)
            find().call("scale_backward", *given, *result, *vectors)
            grads += vectors
        cast = [
            None if grad is None else grad.to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        return result_to, None, *cast


def _piece(y_to: Tensor, piece: Shift) -> Tensor:
    return y_to[slice(*piece.rows), slice(*piece.columns)]


def dense_rows(grad: Tensor) -> Tensor:
    """Return a gradient as rows without gaps between their elements."""
    return grad if grad.stride(-1) == 1 else grad.contiguous()
