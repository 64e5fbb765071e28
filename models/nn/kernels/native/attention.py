"""Attention of training in C++: products of blocks, the weights computed again for gradients.

Shapes: t rows of a stream, H query heads, K key heads, G = H + 2 K, h head dimension.
"""

from collections.abc import Sequence
from typing import Any

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
    if not takes(heads_tgh) or heads_tgh.shape[-1] % INPUT_STEP:
        return PLAIN.attend_packed(
            heads_tgh, kv_heads=kv_heads, bounds=bounds, scale=scale, parents=parents
        )
    parents = parents or (NONE,) * (len(bounds) - 1)
    output_thh: Tensor = apply(_Attend, heads_tgh, kv_heads, bounds, parents, scale)
    return output_thh


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        heads_tgh: Tensor,
        kv_heads: int,
        bounds: Sequence[int],
        parents: Sequence[int],
        scale: float,
    ) -> Tensor:
        rows, heads, dimension = heads_tgh.shape
        query_heads = heads - 2 * kv_heads
        sequences = (torch.tensor(bounds), torch.tensor(parents), len(parents))
        ctx.sizes = (query_heads, kv_heads, dimension, scale, *sequences)
        output_thh = torch.empty(rows, query_heads, dimension, dtype=heads_tgh.dtype)
        sums_th = torch.empty(rows, query_heads)
        given = (heads_tgh, heads_tgh.stride(0), *ctx.sizes)
        find().call("attend_forward", *given, output_thh, sums_th)
        ctx.save_for_backward(heads_tgh, output_thh, sums_th)
        return output_thh

    @staticmethod
    def backward(ctx: Any, grad_thh: Tensor) -> tuple[Tensor, None, None, None, None]:
        heads_tgh, output_thh, sums_th = ctx.saved_tensors
        grad_thh = _abreast(grad_thh)
        result_tgh = torch.empty(heads_tgh.shape, dtype=heads_tgh.dtype)
        given = (heads_tgh, heads_tgh.stride(0), *ctx.sizes, output_thh, sums_th)
        find().call("attend_backward", *given, grad_thh, grad_thh.stride(0), result_tgh)
        return result_tgh, None, None, None, None


def _abreast(heads: Tensor) -> Tensor:
    """Return heads that lie without gaps within a row."""
    dense = heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]
    return heads if dense else heads.contiguous()
