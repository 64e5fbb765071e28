"""A frozen product and the low-rank updates beside it, as one autograd function.

Kept for the backward: the input, and of each update the inner activations, which have `rank`
columns. Products are associated so that no (o, i) gradient and no (t, o) update is ever made.
Shapes: t rows, n rows of an update, i in features, o out features, r rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.prepacked import PREPACKED
from models.nn.kernels.rows import multiply
from models.nn.kernels.table import Update, Weight


def project(x_ti: Tensor, *, weight: Weight, updates: Sequence[Update] = ()) -> Tensor:
    """See `reference.project`."""
    # Not whether something here requires a gradient: that would depend on others in the stream.
    if not torch.is_grad_enabled() and not updates:
        multiply_once = weight.kept.get(PREPACKED, F.linear)
        product_to: Tensor = multiply_once(x_ti, weight.weight_oi, weight.bias_o)
        return product_to
    tensors = [tensor for update in updates for tensor in (update.down_ri, update.up_or)]
    places = [_Place(slice(*u.rows), slice(*u.columns), u.scale, u.keep_ti) for u in updates]
    y_to: Tensor = apply(_Project, x_ti, weight.weight_oi, weight.bias_o, places, *tensors)
    return y_to


class _Place(NamedTuple):
    """Where an update acts, and how."""

    rows: slice
    columns: slice
    scale: float
    keep_ni: Tensor | None

    def read(self, x_ti: Tensor) -> Tensor:
        """Return (n, i): what the update reads."""
        own_ni = x_ti[self.rows]
        return own_ni if self.keep_ni is None else own_ni * self.keep_ni


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ti: Tensor,
        weight_oi: Tensor,
        bias_o: Tensor | None,
        places: list[_Place],
        *tensors: Tensor,
    ) -> Tensor:
        y_to = multiply(x_ti, weight_oi, bias_o)
        inner = []
        for place, down_ri, up_or in zip(places, tensors[::2], tensors[1::2], strict=True):
            inner_nr = (place.read(x_ti) @ down_ri.t()).mul_(place.scale)
            y_to[place.rows, place.columns].addmm_(inner_nr, up_or.t())
            inner.append(inner_nr)
        ctx.places = places
        read = places or ctx.needs_input_grad[1]
        ctx.save_for_backward(x_ti if read else None, weight_oi, *tensors, *inner)
        return y_to

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        x_ti, weight_oi, *held = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, *needs = ctx.needs_input_grad
        count = len(ctx.places)
        tensors, inner = held[: 2 * count], held[2 * count :]
        grad_ti = multiply(grad_to, weight_oi.t()) if needs_x else None
        grads: list[Tensor | None] = []
        for index, place in enumerate(ctx.places):
            down_ri, up_or = tensors[2 * index : 2 * index + 2]
            needs_down, needs_up = needs[2 * index : 2 * index + 2]
            grad_no = grad_to[place.rows, place.columns]
            grad_nr = (grad_no @ up_or).mul_(place.scale)
            grads.append(grad_nr.t() @ place.read(x_ti) if needs_down else None)
            grads.append(grad_no.t() @ inner[index] if needs_up else None)
            if grad_ti is not None and place.keep_ni is None:
                grad_ti[place.rows].addmm_(grad_nr, down_ri)
            elif grad_ti is not None:
                grad_ti[place.rows] += (grad_nr @ down_ri) * place.keep_ni
        grad_oi = grad_to.t() @ x_ti if needs_weight else None
        grad_o = grad_to.sum(0) if needs_bias else None
        return grad_ti, grad_oi, grad_o, None, *grads
