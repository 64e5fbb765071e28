"""`rotate` by a kernel over heads that lie side by side; a rotation's gradient turns back.

Shapes: t rows, G heads side by side, h head dimension, f half of it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.triton.rows import is_supported

_HEADS = 8


def rotate(heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int) -> Tensor:
    """See `reference.rotate`."""
    if not is_supported(heads_tgh, cos_th, sin_th):
        return PLAIN.rotate(heads_tgh, cos_th=cos_th, sin_th=sin_th, rotated=rotated)
    turned_tgh: Tensor = apply(
        _Rotate, heads_tgh, cos_th.contiguous(), sin_th.contiguous(), rotated
    )
    return turned_tgh


class _Rotate(torch.autograd.Function):
    """Keeps the angles only."""

    @staticmethod
    def forward(
        ctx: Any, heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor, rotated: int
    ) -> Tensor:
        ctx.save_for_backward(cos_th, sin_th)
        ctx.rotated = rotated
        return _turn(heads_tgh, cos_th, sin_th, rotated=rotated, sign=1.0)

    @staticmethod
    def backward(ctx: Any, grad_tgh: Tensor) -> tuple[Tensor, None, None, None]:
        cos_th, sin_th = ctx.saved_tensors
        turned_tgh = _turn(grad_tgh, cos_th, sin_th, rotated=ctx.rotated, sign=-1.0)
        return turned_tgh, None, None, None


def _turn(
    heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor, *, rotated: int, sign: float
) -> Tensor:
    rows, heads, size = heads_tgh.shape
    if heads_tgh.stride()[1:] != (size, 1):
        heads_tgh = heads_tgh.contiguous()
    turned_tgh = torch.empty(rows, heads, size, dtype=heads_tgh.dtype, device=heads_tgh.device)
    _turn_rows[(rows, triton.cdiv(heads, _HEADS))](
        heads_tgh,
        cos_th,
        sin_th,
        turned_tgh,
        heads_tgh.stride(0),
        heads,
        rotated,
        size,
        sign,
        heads_a_tile=_HEADS,
        widest=triton.next_power_of_2(size // 2),
    )
    return turned_tgh


@triton.jit
def _turn_rows(
    heads: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    turned: tl.tensor,
    row_stride: tl.tensor,
    count: tl.tensor,
    rotated: tl.tensor,
    size: tl.tensor,
    sign: tl.tensor,
    heads_a_tile: tl.constexpr,
    widest: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    heads_g = tl.program_id(1) * heads_a_tile + tl.arange(0, heads_a_tile)
    half_f = tl.arange(0, widest)
    held_f = half_f < size // 2
    inside_gf = (heads_g < count)[:, None] & held_f[None, :]
    places_gf = heads_g[:, None] * size + half_f[None, :]
    start = heads + row * row_stride
    first_gf = tl.load(start + places_gf, mask=inside_gf, other=0.0).to(tl.float32)
    second_gf = tl.load(start + places_gf + size // 2, mask=inside_gf, other=0.0).to(tl.float32)
    cos_f = tl.load(cos + row * size + half_f, mask=held_f, other=1.0).to(tl.float32)[None, :]
    sin_f = tl.load(sin + row * size + half_f, mask=held_f, other=0.0).to(tl.float32)[None, :]
    turns_g = (heads_g < rotated)[:, None]
    cos_gf = tl.where(turns_g, cos_f, 1.0)
    sin_gf = tl.where(turns_g, sin_f * sign, 0.0)
    target = turned + row * count * size
    kind = turned.dtype.element_ty
    tl.store(target + places_gf, (first_gf * cos_gf - second_gf * sin_gf).to(kind), mask=inside_gf)
    tl.store(
        target + places_gf + size // 2,
        (second_gf * cos_gf + first_gf * sin_gf).to(kind),
        mask=inside_gf,
    )
