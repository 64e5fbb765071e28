"""Many tensors added to one of float32 in C++: one pass over memory, by all threads."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from models.nn.kernels.native import find, library

_FORMS = {torch.bfloat16: "bf16", torch.float32: "f32"}


def takes(sums: Tensor, pieces: Sequence[Tensor | None]) -> bool:
    """Say whether these are added here: all of one dtype."""
    given = [piece for piece in pieces if piece is not None]
    return (
        library() is not None
        and sums.is_cpu
        and sums.dtype is torch.float32
        and bool(given)
        and given[0].dtype in _FORMS
        and all(piece.dtype is given[0].dtype and piece.is_contiguous() for piece in given)
    )


def add_pieces(sums: Tensor, pieces: Sequence[Tensor | None], *, sizes: Sequence[int]) -> None:
    """Add pieces of these sizes, one behind the other, to flat sums; None is zeros."""
    form = _FORMS[next(piece.dtype for piece in pieces if piece is not None)]
    numbers: list[int] = []
    for piece, size in zip(pieces, sizes, strict=True):
        numbers += (0 if piece is None else piece.data_ptr(), size)
    find().call(f"add_pieces_{form}", struct.pack(f"{len(numbers)}q", *numbers), len(sizes), sums)
