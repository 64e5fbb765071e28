"""Attention of training in C++: products of blocks, the weights computed again for gradients.

Shapes: t rows of a stream, H query heads, K key heads, G = H + 2 K, h head dimension.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import INPUT_STEP, find, takes
from models.nn.kernels.plain import PLAIN
from models.nn.lineage import NONE


def attend_packed(
    heads_tgh: Tensor,
    *,
    kv_heads: int,
    bounds: Sequence[int],
    scale: float,
    parents: Sequence[int] = (),
) -> Tensor:
    """See `reference.attend_packed`; a sequence's bits depend on those before it alone."""
    heads_tgh = _abreast(heads_tgh)
    if not _takes(heads_tgh, kv_heads, bounds):
        return PLAIN.attend_packed(
            heads_tgh, kv_heads=kv_heads, bounds=bounds, scale=scale, parents=parents
        )
    sequences = Sequences.of(
        *heads_tgh.shape[1:], kv_heads=kv_heads, bounds=bounds, scale=scale, parents=parents
    )
    output_thh: Tensor = apply(_Attend, heads_tgh, sequences)
    return output_thh


class Sequences(NamedTuple):
    """Heads and sequences as the kernels take them; it computes without torch's graph."""

    query_heads: int
    kv_heads: int
    dimension: int
    scale: float
    bounds: Tensor
    parents: Tensor
    number: int

    @classmethod
    def of(
        cls,
        heads: int,
        dimension: int,
        *,
        kv_heads: int,
        bounds: Sequence[int],
        scale: float,
        parents: Sequence[int] = (),
    ) -> "Sequences":
        """Take what `attend_packed` takes of `heads` heads that lie side by side."""
        parents = parents or (NONE,) * (len(bounds) - 1)
        places = (torch.tensor(bounds), torch.tensor(parents), len(parents))
        # A whole scale would be handed over as an integer, in another register.
        return cls(heads - 2 * kv_heads, kv_heads, dimension, float(scale), *places)

    def forward(self, heads_tgh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (t, H, h), and (t, H) float32: logarithms of softmax's divisors."""
        rows = len(heads_tgh)
        output_thh = torch.empty(rows, self.query_heads, self.dimension, dtype=heads_tgh.dtype)
        sums_th = torch.empty(rows, self.query_heads)
        given = (heads_tgh, heads_tgh.stride(0), *self)
        find().call("attend_forward", *given, output_thh, sums_th)
        return output_thh, sums_th

    def backward(
        self, grad_thh: Tensor, heads_tgh: Tensor, output_thh: Tensor, sums_th: Tensor
    ) -> Tensor:
        """Return the gradient of the heads (t, G, h)."""
        grad_thh = _abreast(grad_thh)
        result_tgh = torch.empty(heads_tgh.shape, dtype=heads_tgh.dtype)
        given = (heads_tgh, heads_tgh.stride(0), *self, output_thh, sums_th)
        find().call("attend_backward", *given, grad_thh, grad_thh.stride(0), result_tgh)
        return result_tgh


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads_tgh: Tensor, sequences: Sequences) -> Tensor:
        output_thh, sums_th = sequences.forward(heads_tgh)
        ctx.sequences = sequences
        ctx.save_for_backward(heads_tgh, output_thh, sums_th)
        return output_thh

    @staticmethod
    def backward(ctx: Any, grad_thh: Tensor) -> tuple[Tensor, None]:
        return ctx.sequences.backward(grad_thh, *ctx.saved_tensors), None


def _takes(heads_tgh: Tensor, kv_heads: int, bounds: Sequence[int]) -> bool:
    """Say whether these heads are attended with here: C++ takes whole groups, and all rows."""
    rows, heads, dimension = heads_tgh.shape
    fits = heads % kv_heads == 0 and bounds[-1] == rows
    return fits and takes(heads_tgh) and dimension % INPUT_STEP == 0


def _abreast(heads: Tensor) -> Tensor:
    """Return heads that lie without gaps within a row."""
    dense = heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]
    return heads if dense else heads.contiguous()
