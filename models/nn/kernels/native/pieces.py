"""Many bfloat16 tensors added to one of float32 in C++: one pass over memory, by all threads."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from models.nn.kernels.native import find, library


def takes(sums: Tensor, pieces: Sequence[Tensor | None]) -> bool:
    """Say whether these are added here."""
    return (
        library() is not None
        and sums.is_cpu
        and sums.dtype is torch.float32
        and all(p is None or (p.dtype is torch.bfloat16 and p.is_contiguous()) for p in pieces)
    )


def add_pieces(sums: Tensor, pieces: Sequence[Tensor | None], *, sizes: Sequence[int]) -> None:
    """Add pieces of these sizes, one behind the other, to flat sums; None is zeros."""
    numbers: list[int] = []
    for piece, size in zip(pieces, sizes, strict=True):
        numbers += (0 if piece is None else piece.data_ptr(), size)
    find().call("add_pieces", struct.pack(f"{len(numbers)}q", *numbers), len(sizes), sums)
