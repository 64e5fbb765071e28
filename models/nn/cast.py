"""Many tensors cast or added as one: hundreds of adapters' small ones cost a few calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native.pieces import add_pieces, takes


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the tensors, all of one device, in `dtype`; differentiable.

    Those that have it are returned themselves, the others as views of one new buffer.
    """
    others = [tensor for tensor in tensors if tensor.dtype is not dtype]
    cast: tuple[Tensor, ...] = apply(_Cast, dtype, *others) if others else ()
    remaining = iter(cast)
    return [tensor if tensor.dtype is dtype else next(remaining) for tensor in tensors]


def split(buffer: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return what lies one behind the other in a flat tensor, in these shapes."""
    pieces = torch.split(buffer, [shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def add_together(
    sums: Tensor, pieces: Sequence[Tensor | None], shapes: Sequence[torch.Size]
) -> None:
    """Add pieces of these shapes, one behind the other, to a flat tensor; None is zeros."""
    sizes = [shape.numel() for shape in shapes]
    if takes(sums, pieces):
        add_pieces(sums, pieces, sizes=sizes)
        return
    whole = [
        sums.new_zeros(size) if piece is None else piece.flatten()
        for piece, size in zip(pieces, sizes, strict=True)
    ]
    sums.add_(torch.cat(whole))


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        buffer = tensors[0].new_empty(sum(t.numel() for t in tensors), dtype=dtype)
        cast = split(buffer, [tensor.shape for tensor in tensors])
        torch._foreach_copy_(cast, tensors)
        return tuple(cast)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        buffer = grads[0].new_empty(sum(grad.numel() for grad in grads), dtype=torch.float32)
        wide = split(buffer, [grad.shape for grad in grads])
        torch._foreach_copy_(wide, list(grads))
        return None, *(g.to(dtype) for g, dtype in zip(wide, ctx.dtypes, strict=True))
