"""Linear layers with low-rank updates in C++: one call forward, one backward.

In bfloat16, or in float32 where AVX2 is all that there is; the base's product rounds there as
`multiply` does.

The base's weight is read as it lies: packing it a few panels at a time costs a percent or two of a
product over hundreds of rows, packed copies of all layers would cost twice the weights' memory.
Shapes: t rows, i in features, o out features, r rank.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import INPUT_STEP, PANEL_WIDTH, find, library, takes
from models.nn.kernels.native.multiply import may_round
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import Update, Weight


def project(x_ti: Tensor, *, weight: Weight, updates: Sequence[Update] = ()) -> Tensor:
    """See `reference.project`; a job's rows and gradients do not depend on other rows' bits.

    Updates with dropout are added in plain torch, and so are any that do not lie as the kernels
    read them, and in float32 the gradient of a weight that trains.
    """
    if not (_takes(weight) and takes(x_ti) and x_ti.shape[1] == weight.weight_oi.shape[1]):
        return PLAIN.project(x_ti, weight=weight, updates=updates)
    own: list[Update] = []
    others: list[Update] = []
    for update in updates:
        (own if _fits(update) else others).append(update)
    own.sort(key=_place)
    if not _are_apart(own):
        own, others = [], list(updates)
    matrices = [matrix for update in own for matrix in (update.down_ri, update.up_or)]
    y_to: Tensor = apply(_Project, x_ti, weight.weight_oi, weight.bias_o, own, *matrices)
    return _add(y_to, x_ti, others) if others else y_to


def keeps_rows_apart(weight: Weight) -> bool:
    """Say whether a row and its gradient are the same bits here whatever rows are beside it."""
    return library() is not None and _takes(weight)


def _takes(weight: Weight) -> bool:
    given = [weight.weight_oi, *([] if weight.bias_o is None else [weight.bias_o])]
    aligned = all(size % INPUT_STEP == 0 for size in weight.weight_oi.shape)  # both are summed over
    return aligned and takes(*given)


def _place(update: Update) -> tuple[tuple[int, int], tuple[int, int]]:
    return update.rows, update.columns


def _fits(update: Update) -> bool:
    """Say whether it drops nothing and lies as the kernels read it."""
    first, last = update.columns
    return (
        update.keep_ti is None
        and takes(update.down_ri, update.up_or)
        and first % PANEL_WIDTH == 0
        and (last - first) % INPUT_STEP == 0
        and update.rows[0] < update.rows[1]
    )


def _are_apart(updates: Sequence[Update]) -> bool:
    """Say whether updates in order that are not of the same rows share none."""
    return all(
        first.rows == second.rows or first.rows[1] <= second.rows[0]
        for first, second in pairwise(updates)
    )


def _add(y_to: Tensor, x_ti: Tensor, updates: Sequence[Update]) -> Tensor:
    """Return y with updates whose products are of their own rows alone."""
    y_to = y_to.clone()
    for update in updates:
        rows, columns = slice(*update.rows), slice(*update.columns)
        own_ti = x_ti[rows] if update.keep_ti is None else x_ti[rows] * update.keep_ti
        inner_tr = (own_ti @ update.down_ri.T * update.scale).to(x_ti.dtype)
        y_to[rows, columns] += inner_tr @ update.up_or.T
    return y_to


_UPDATE = "8q2Pd2P"
"""An update as the kernels read it (`source/update.h`)."""


class _Layout(NamedTuple):
    """Where the inner values of updates, in order, lie in one buffer of `size`."""

    numbers: tuple[tuple[int, ...], ...]
    """Of each: rows, columns, rank, padded rank, first element, and from one row to the next."""
    size: int

    def records(
        self,
        updates: Sequence[Update],
        matrices: Sequence[Tensor],
        grads: Sequence[Tensor | None],
    ) -> bytes:
        """Return the updates for a call, with matrices and room for their gradients in pairs."""
        at = [matrix.data_ptr() for matrix in matrices]
        room = [0 if grad is None else grad.data_ptr() for grad in grads]
        values: list[float] = []
        for i, (numbers, update) in enumerate(zip(self.numbers, updates, strict=True)):
            pair = slice(2 * i, 2 * i + 2)
            values += (*numbers, *at[pair], update.scale, *room[pair])
        return struct.pack(_UPDATE * len(updates), *values)


def _lay_out(updates: Sequence[Update]) -> _Layout:
    step = PANEL_WIDTH if find().instructions in ("avx2", "avx512") else INPUT_STEP
    rectangles = tuple((*u.rows, *u.columns, u.down_ri.shape[0]) for u in updates)
    return _place_abreast(rectangles, step)


@lru_cache(maxsize=256)
def _place_abreast(rectangles: tuple[tuple[int, int, int, int, int], ...], step: int) -> _Layout:
    """Put updates of the same rows abreast; each is given by its rows, columns and rank.

    Inner values are read in steps: ranks are padded to a multiple of `step`.
    """
    padded = [-(-rank // step) * step for *_, rank in rectangles]
    widths: dict[tuple[int, int], int] = {}
    for (top, bottom, *_), width in zip(rectangles, padded, strict=True):
        widths[top, bottom] = widths.get((top, bottom), 0) + width
    starts, size = {}, 0
    for (top, bottom), width in widths.items():
        starts[top, bottom] = size
        size += (bottom - top) * width
    numbers = []
    for (top, bottom, *rest), width in zip(rectangles, padded, strict=True):
        rows = (top, bottom)
        numbers.append((*rows, *rest, width, starts[rows], widths[rows]))
        starts[rows] += width
    return _Layout(tuple(numbers), size)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ti: Tensor,
        weight_oi: Tensor,
        bias_o: Tensor | None,
        updates: Sequence[Update],
        *matrices: Tensor,
    ) -> Tensor:
        layout, matrices = _lay_out(updates), tuple(matrix.contiguous() for matrix in matrices)
        inner = torch.empty(layout.size, dtype=x_ti.dtype)
        records = (layout.records(updates, matrices, [None] * len(matrices)), len(updates))
        given = (x_ti, x_ti.stride(0), len(x_ti))
        y_to = torch.empty(len(x_ti), len(weight_oi), dtype=x_ti.dtype)
        weight = (weight_oi, weight_oi.stride(0), *weight_oi.shape, bias_o)
        if find().trains:
            find().call("project_forward", *weight, *records, *given, inner, y_to)
        else:
            ctx.rounds = may_round()
            arguments = (ctx.rounds, *weight, *records, *given, inner, y_to)
            find().call("project_floats_forward", *arguments)
        # Matrices as they are, for they change only after the backward: a gang's stream has dozens.
        ctx.layout, ctx.updates, ctx.matrices = layout, updates, matrices
        read = updates or ctx.needs_input_grad[1]
        ctx.save_for_backward(x_ti if read else None, weight_oi, inner)
        return y_to

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        x_ti, weight_oi, inner = ctx.saved_tensors
        matrices = ctx.matrices
        grad_to = grad_to if grad_to.stride(1) == 1 else grad_to.contiguous()
        wanted, updates = ctx.needs_input_grad, ctx.updates
        grads = [
            torch.empty(matrix.shape, dtype=matrix.dtype) if wanted[4 + i] else None
            for i, matrix in enumerate(matrices)
        ]
        records = (ctx.layout.records(updates, matrices, grads), len(updates))
        given = (None, 0) if x_ti is None else (x_ti, x_ti.stride(0))
        grad = (grad_to, grad_to.stride(0), len(grad_to))
        result_ti = grad_to.new_empty(len(grad_to), weight_oi.shape[1]) if wanted[0] else None
        weight = (weight_oi, weight_oi.stride(0), *weight_oi.shape)
        rest = (*weight, *records, *given, *grad, inner, torch.empty_like(inner), result_ti)
        if find().trains:
            find().call("project_backward", *rest)
        else:
            find().call("project_floats_backward", ctx.rounds, *rest)
        weight_grad_oi = _weight_gradient(grad_to, x_ti) if wanted[1] else None
        bias_grad_o = grad_to.sum(0) if wanted[2] else None
        return result_ti, weight_grad_oi, bias_grad_o, None, *grads


def _weight_gradient(grad_to: Tensor, x_ti: Tensor) -> Tensor:
    """Return dyT x (o, i), summed in float32."""
    if not (find().trains and len(grad_to)):
        return grad_to.T @ x_ti
    outputs, inputs = grad_to.shape[1], x_ti.shape[1]
    result_oi = grad_to.new_empty(outputs, inputs)
    grad, given = (grad_to, grad_to.stride(0), outputs), (x_ti, x_ti.stride(0), inputs)
    find().call("weight_gradient", *grad, *given, len(grad_to), result_oi)
    return result_oi
