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
    if not (takes_weight(weight) and takes(x_ti) and x_ti.shape[1] == weight.weight_oi.shape[1]):
        return PLAIN.project(x_ti, weight=weight, updates=updates)
    own, others = in_order(updates)
    matrices = [matrix for update in own for matrix in (update.down_ri, update.up_or)]
    y_to: Tensor = apply(_Project, x_ti, weight.weight_oi, weight.bias_o, own, *matrices)
    return _add(y_to, x_ti, others) if others else y_to


def in_order(updates: Sequence[Update]) -> tuple[list[Update], list[Update]]:
    """Return the updates that the kernels take, in their order, and those that they do not."""
    own: list[Update] = []
    others: list[Update] = []
    for update in updates:
        (own if _fits(update) else others).append(update)
    own.sort(key=_place)
    return (own, others) if _are_apart(own) else ([], list(updates))


def keeps_rows_apart(weight: Weight) -> bool:
    """Say whether a row and its gradient are the same bits here whatever rows are beside it."""
    return library() is not None and takes_weight(weight)


def takes_weight(weight: Weight) -> bool:
    """Say whether products with this weight are computed here."""
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


class Product(NamedTuple):
    """A weight, updates that the kernels take, in order, and where their inner values lie.

    It computes without torch's graph; the weight is taken as one that does not train.
    """

    weight_oi: Tensor
    bias_o: Tensor | None
    updates: Sequence[Update]
    matrices: Sequence[Tensor]
    """Of each update down and up, kept as they are: they change only after the backward."""
    layout: _Layout
    rounds: bool
    """Whether a product of float32 may round its sides."""

    @classmethod
    def of(cls, weight_oi: Tensor, bias_o: Tensor | None, updates: Sequence[Update]) -> "Product":
        """Take updates that `in_order` has returned."""
        matrices = [m.contiguous() for update in updates for m in (update.down_ri, update.up_or)]
        return cls(weight_oi, bias_o, updates, matrices, _lay_out(updates), may_round())

    def forward(self, x_ti: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (t, o) and the inner values."""
        inner = torch.empty(self.layout.size, dtype=x_ti.dtype)
        y_to = torch.empty(len(x_ti), len(self.weight_oi), dtype=x_ti.dtype)
        records = self._records([None] * len(self.matrices))
        given = (*self._weight, self.bias_o, *records, x_ti, x_ti.stride(0), len(x_ti), inner, y_to)
        if find().trains:
            find().call("project_forward", *given)
        else:
            find().call("project_floats_forward", self.rounds, *given)
        return y_to, inner

    def backward(
        self,
        grad_to: Tensor,
        x_ti: Tensor | None,
        inner: Tensor,
        *,
        wanted: Sequence[bool],
        wants_input: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return the gradients of x, which only updates read, and of the `wanted` matrices."""
        grads = [
            torch.empty(matrix.shape, dtype=matrix.dtype) if one else None
            for matrix, one in zip(self.matrices, wanted, strict=True)
        ]
        result_ti = None
        if wants_input:
            result_ti = grad_to.new_empty(len(grad_to), self.weight_oi.shape[1])
        read = (None, 0) if x_ti is None else (x_ti, x_ti.stride(0))
        grad = (grad_to, grad_to.stride(0), len(grad_to))
        given = (*self._weight, *self._records(grads), *read, *grad, inner)
        if find().trains:
            find().call("project_backward", *given, torch.empty_like(inner), result_ti)
        else:
            scratch = torch.empty_like(inner)
            find().call("project_floats_backward", self.rounds, *given, scratch, result_ti)
        return result_ti, grads

    @property
    def _weight(self) -> tuple[Tensor, int, int, int]:
        outputs, inputs = self.weight_oi.shape
        return self.weight_oi, self.weight_oi.stride(0), outputs, inputs

    def _records(self, grads: Sequence[Tensor | None]) -> tuple[bytes, int]:
        return self.layout.records(self.updates, self.matrices, grads), len(self.updates)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ti: Tensor,
        weight_oi: Tensor,
        bias_o: Tensor | None,
        updates: Sequence[Update],
        *matrices: Tensor,  # noqa: ARG004 - for torch to see
    ) -> Tensor:
        ctx.product = product = Product.of(weight_oi, bias_o, updates)
        y_to, inner = product.forward(x_ti)
        read = updates or ctx.needs_input_grad[1]
        ctx.save_for_backward(x_ti if read else None, weight_oi, inner)
        return y_to

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        x_ti, _, inner = ctx.saved_tensors
        grad_to = grad_to if grad_to.stride(1) == 1 else grad_to.contiguous()
        wanted = ctx.needs_input_grad
        result_ti, grads = ctx.product.backward(
            grad_to, x_ti, inner, wanted=wanted[4:], wants_input=wanted[0]
        )
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
