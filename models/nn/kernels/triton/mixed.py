"""Products for rows of different adapters: the weight of every row and column says whose is whose.

Adapters lie side by side at their own ranks, and rows come in any order. A program takes a tile
of rows and passes over all columns that none of its rows owns, so that a row of the base costs a
look. No gradients. Shapes: t rows, i in features, o out features, r sum of ranks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.nn.kernels.triton.activations import activate
from models.nn.kernels.triton.rows import dot, load_tile, readable, store_tile

_ROWS, _RANKS, _FEATURES, _DEPTH = 16, 16, 64, 128


def narrow_mixed(
    x_ti: Tensor,
    down_ri: Tensor,
    *,
    weight_tr: Tensor,
    bias_r: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Return `act(x @ downT + bias) * weight`, (t, r) in x's dtype; undefined in tiles of zeros."""
    x_ti, down_ri, weight_tr = readable(x_ti), readable(down_ri), readable(weight_tr)
    rows, ranks = weight_tr.shape
    inner_tr = torch.empty(rows, ranks, dtype=x_ti.dtype, device=x_ti.device)
    _narrow_mixed[triton.cdiv(rows, _ROWS), triton.cdiv(ranks, _RANKS)](
        x_ti,
        down_ri,
        down_ri if bias_r is None else bias_r,
        weight_tr,
        inner_tr,
        x_ti.stride(0),
        down_ri.stride(0),
        weight_tr.stride(0),
        rows,
        ranks,
        x_ti.shape[1],
        has_bias=bias_r is not None,
        activation=activation,
        rows_a_tile=_ROWS,
        ranks_a_tile=_RANKS,
        depth=_DEPTH,
    )
    return inner_tr


def widen_mixed(y_to: Tensor, inner_tr: Tensor, up_or: Tensor, *, weight_tr: Tensor) -> Tensor:
    """Return `y + inner @ upT`, (t, o) in y's dtype, over the columns that a row owns."""
    y_to, weight_tr = readable(y_to), readable(weight_tr)
    rows, ranks = weight_tr.shape
    output_to = torch.empty(y_to.shape, dtype=y_to.dtype, device=y_to.device)
    _widen_mixed[triton.cdiv(rows, _ROWS), triton.cdiv(y_to.shape[1], _FEATURES)](
        y_to,
        inner_tr,
        up_or,
        weight_tr,
        output_to,
        y_to.stride(0),
        up_or.stride(0),
        up_or.stride(1),
        weight_tr.stride(0),
        rows,
        ranks,
        y_to.shape[1],
        rows_a_tile=_ROWS,
        ranks_a_tile=_RANKS,
        features=_FEATURES,
    )
    return output_to


@triton.jit
def _narrow_mixed(
    x: tl.tensor,
    down: tl.tensor,
    bias: tl.tensor,
    weight: tl.tensor,
    inner: tl.tensor,
    x_stride: tl.tensor,
    down_stride: tl.tensor,
    weight_stride: tl.tensor,
    rows: tl.tensor,
    ranks: tl.tensor,
    width: tl.tensor,
    has_bias: tl.constexpr,
    activation: tl.constexpr,
    rows_a_tile: tl.constexpr,
    ranks_a_tile: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    rows_t = tl.program_id(0) * rows_a_tile + tl.arange(0, rows_a_tile)
    ranks_r = tl.program_id(1) * ranks_a_tile + tl.arange(0, ranks_a_tile)
    weight_tr = load_tile(weight, rows_t, rows, weight_stride, ranks_r, ranks, 1)
    if tl.max(tl.abs(weight_tr)) > 0.0:
        total_tr = tl.zeros((rows_a_tile, ranks_a_tile), tl.float32)
        for start in range(0, width, depth):
            inputs_i = start + tl.arange(0, depth)
            x_ti = load_tile(x, rows_t, rows, x_stride, inputs_i, width, 1)
            down_ir = load_tile(down, inputs_i, width, 1, ranks_r, ranks, down_stride)
            total_tr = dot(x_ti, down_ir, total_tr)
        if has_bias:
            bias_r = tl.load(bias + ranks_r, mask=ranks_r < ranks, other=0.0)
            total_tr += bias_r.to(tl.float32)[None, :]
        # Where a row owns nothing there may be an infinity, which no weight makes zero.
        own_tr = tl.where(weight_tr != 0.0, activate(total_tr, activation) * weight_tr, 0.0)
        store_tile(inner, rows_t, rows, ranks, ranks_r, ranks, 1, own_tr)


@triton.jit
def _widen_mixed(
    y: tl.tensor,
    inner: tl.tensor,
    up: tl.tensor,
    weight: tl.tensor,
    output: tl.tensor,
    y_stride: tl.tensor,
    up_stride: tl.tensor,
    up_rank_stride: tl.tensor,
    weight_stride: tl.tensor,
    rows: tl.tensor,
    ranks: tl.tensor,
    width: tl.tensor,
    rows_a_tile: tl.constexpr,
    ranks_a_tile: tl.constexpr,
    features: tl.constexpr,
) -> None:
    rows_t = tl.program_id(0) * rows_a_tile + tl.arange(0, rows_a_tile)
    outputs_o = tl.program_id(1) * features + tl.arange(0, features)
    total_to = load_tile(y, rows_t, rows, y_stride, outputs_o, width, 1).to(tl.float32)
    for start in range(0, ranks, ranks_a_tile):
        ranks_r = start + tl.arange(0, ranks_a_tile)
        weight_tr = load_tile(weight, rows_t, rows, weight_stride, ranks_r, ranks, 1)
        if tl.max(tl.abs(weight_tr)) > 0.0:
            inner_tr = load_tile(inner, rows_t, rows, ranks, ranks_r, ranks, 1)
            up_ro = load_tile(up, ranks_r, ranks, up_rank_stride, outputs_o, width, up_stride)
            total_to = dot(inner_tr, up_ro, total_to)
    store_tile(output, rows_t, rows, width, outputs_o, width, 1, total_to)
