"""What all kernels share: how they read tensors, and how they multiply tiles.

Rows may lie apart, but the numbers of a row lie side by side. Shapes: a and b sides of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def readable(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or a copy where the numbers of a row lie apart."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def is_supported(*tensors: Tensor) -> bool:
    """Say whether the tensors have one dtype, and one that the kernels compute in."""
    dtypes = {tensor.dtype for tensor in tensors}
    return len(dtypes) == 1 and dtypes <= _DTYPES


@triton.jit
def load_tile(
    start: tl.tensor,
    places_a: tl.tensor,
    end_a: tl.tensor,
    stride_a: tl.tensor,
    places_b: tl.tensor,
    end_b: tl.tensor,
    stride_b: tl.tensor,
) -> tl.tensor:
    """Return (a, b): the numbers at these places before the ends, zeros elsewhere."""
    return tl.load(
        start + _offsets(places_a, stride_a, places_b, stride_b),
        mask=(places_a < end_a)[:, None] & (places_b < end_b)[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(
    start: tl.tensor,
    places_a: tl.tensor,
    end_a: tl.tensor,
    stride_a: tl.tensor,
    places_b: tl.tensor,
    end_b: tl.tensor,
    stride_b: tl.tensor,
    tile_ab: tl.tensor,
) -> None:
    """Write a tile (a, b), rounded to the target's dtype, at the places before the ends."""
    tl.store(
        start + _offsets(places_a, stride_a, places_b, stride_b),
        tile_ab.to(start.dtype.element_ty),
        mask=(places_a < end_a)[:, None] & (places_b < end_b)[None, :],
    )


@triton.jit
def _offsets(
    places_a: tl.tensor, stride_a: tl.tensor, places_b: tl.tensor, stride_b: tl.tensor
) -> tl.tensor:
    """Return (a, b) in 64 bits: a late row of many begins 2^31 numbers behind the first."""
    return places_a[:, None].to(tl.int64) * stride_a + places_b[None, :].to(tl.int64) * stride_b


@triton.jit
def dot(left: tl.tensor, right: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Return total (float32) plus the product of two tiles of one dtype."""
    if _INTERPRETED:
        # The interpreter holds bfloat16 as bare bits, which it would multiply as integers.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")
