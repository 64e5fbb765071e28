"""Tokens drawn from logits in C++: a few passes over each row, which one thread makes.

Shapes: n rows, v vocabulary.
"""

import struct
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from models.nn.kernels.native import find, library

Want = tuple[float, float, float]
"""Temperature, where 0 takes the likeliest; top-p; and the number in [0, 1) that draws."""


def takes(logits_nv: Tensor) -> bool:
    """Say whether these are drawn from here."""
    return (
        logits_nv.is_cpu
        and logits_nv.dtype is torch.float32
        and logits_nv.is_contiguous()
        and library() is not None
    )


def draw(logits_nv: Tensor, wants: Iterable[Want]) -> list[int]:
    """Return a token of each row, -1 where not all logits are finite."""
    rows, vocabulary = logits_nv.shape
    tokens = array("q", bytes(8 * rows))
    numbers = struct.pack(f"{3 * rows}f", *(number for want in wants for number in want))
    find().call("draw", logits_nv, rows, vocabulary, numbers, tokens.buffer_info()[0])
    return tokens.tolist()
