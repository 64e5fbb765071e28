"""`project` by grouped kernels: the base's product is the library's, the updates are ours.

Shapes: t rows, i in features, o out features, r rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import Update, Weight
from models.nn.kernels.triton.products import narrow, outer, widen
from models.nn.kernels.triton.rows import is_supported, readable
from models.nn.kernels.triton.tiles import Tiles, tiles_of


def project(x_ti: Tensor, *, weight: Weight, updates: Sequence[Update] = ()) -> Tensor:
    """See `reference.project`; a base that trains and dropout are left to it."""
    if not updates:
        return F.linear(x_ti, weight.weight_oi, weight.bias_o)
    factors = [factor for u in updates for factor in (u.down_ri, u.up_or)]
    base = [weight.weight_oi, *([] if weight.bias_o is None else [weight.bias_o])]
    dropped = any(update.keep_ti is not None for update in updates)
    trains = any(tensor.requires_grad for tensor in base)
    acts = any(first < last for (first, last), *_ in updates)
    if dropped or trains or not acts or not is_supported(x_ti, *base, *factors):
        return PLAIN.project(x_ti, weight=weight, updates=updates)
    tiles = tiles_of(updates, inputs=x_ti.shape[1], device=x_ti.device)
    y_to: Tensor = apply(_Project, x_ti, weight, tiles, *factors)
    return y_to


def join(factors: Sequence[Tensor]) -> Tensor:
    """Return all numbers of the factors, flat, factor by factor."""
    flat = [factor.reshape(-1) for factor in factors]
    return flat[0].contiguous() if len(flat) == 1 else torch.cat(flat)


class _Project(torch.autograd.Function):
    """Keeps x, the factors and what lies between them; of the base, nothing new."""

    @staticmethod
    def forward(ctx: Any, x_ti: Tensor, weight: Weight, tiles: Tiles, *factors: Tensor) -> Tensor:
        x_ti = readable(x_ti)
        down, up = join(factors[::2]), join(factors[1::2])
        y_to = F.linear(x_ti, weight.weight_oi, weight.bias_o)
        inner = narrow(x_ti, down, side=tiles.down, tiles=tiles)
        widen(y_to, inner, up, side=tiles.up, tiles=tiles, target_tf=y_to)
        ctx.save_for_backward(x_ti, down, up, inner)
        ctx.weight, ctx.tiles = weight, tiles
        ctx.shapes = [factor.shape for factor in factors]
        return y_to

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        x_ti, down, up, inner = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        grad_to = readable(grad_to)
        needs_x, _, _, *needs = ctx.needs_input_grad
        grad_x = grad_down = grad_up = None
        if needs_x or any(needs[::2]):
            grad_inner = narrow(grad_to, up, side=tiles.up, tiles=tiles)
            if any(needs[::2]):
                grad_down = outer(x_ti, grad_inner, side=tiles.down, tiles=tiles)
            if needs_x:
                grad_x = grad_to @ ctx.weight.weight_oi
                widen(grad_x, grad_inner, down, side=tiles.down, tiles=tiles, target_tf=grad_x)
        if any(needs[1::2]):
            grad_up = outer(grad_to, inner, side=tiles.up, tiles=tiles)
        downs = _split(grad_down, shapes=ctx.shapes[::2], needs=needs[::2])
        ups = _split(grad_up, shapes=ctx.shapes[1::2], needs=needs[1::2])
        pairs = zip(downs, ups, strict=True)
        return grad_x, None, None, *(grad for pair in pairs for grad in pair)


def _split(
    flat: Tensor | None, *, shapes: Sequence[torch.Size], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Return each factor's part of what `join` joined, or None where nobody asked."""
    if flat is None:
        return [None] * len(shapes)
    pieces = torch.split(flat, [shape.numel() for shape in shapes])
    return [
        piece.view(shape) if need else None
        for piece, shape, need in zip(pieces, shapes, needs, strict=True)
    ]
