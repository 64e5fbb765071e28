"""Grouped products between wide rows of a stream and the narrow ones between two factors.

A program works for one adapter: its line of a block table (`tiles.py`) says which rows and which
factor. Shapes: t rows, f features of the stream, r rank.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.nn.kernels.triton.rows import dot, load_tile, store_tile
from models.nn.kernels.triton.tiles import FIELDS, TILE, Side, Tiles

_RANKS, _FEATURES, _DEPTH = 16, 64, 64


def narrow(source_tf: Tensor, factor: Tensor, *, side: Side, tiles: Tiles) -> Tensor:
    """Return, flat, the scaled products of each update's rows with its factor, (t, r) each."""
    inner = source_tf.new_empty(tiles.inner)
    grid = (len(side.tiles_sf), triton.cdiv(tiles.rank, _RANKS))
    _narrow[grid](
        source_tf,
        factor,
        inner,
        side.tiles_sf,
        tiles.scales_s,
        source_tf.stride(0),
        fields=FIELDS,
        rows_a_tile=TILE,
        ranks=_RANKS,
        depth=_DEPTH,
    )
    return inner


def widen(
    base_tf: Tensor, inner: Tensor, factor: Tensor, *, side: Side, tiles: Tiles, target_tf: Tensor
) -> None:
    """Write to each update's rows and features of `target` those of `base` plus inner by factor.

    Target and base may be one tensor: rounds of updates that share rows follow each other.
    """
    for first, last in tiles.rounds:
        grid = (last - first, triton.cdiv(side.width, _FEATURES))
        _widen[grid](
            base_tf,
            inner,
            factor,
            target_tf,
            side.tiles_sf[first:last],
            base_tf.stride(0),
            target_tf.stride(0),
            fields=FIELDS,
            rows_a_tile=TILE,
            ranks=_RANKS,
            features=_FEATURES,
        )


def outer(source_tf: Tensor, inner: Tensor, *, side: Side, tiles: Tiles) -> Tensor:
    """Return, flat, the gradients of the factors of one side: inner's transpose by the rows.

    Slices of rows are summed in float32 and in their order, so that a run repeats to the bit.
    """
    parts_pn = torch.zeros(tiles.parts, side.size, device=source_tf.device)
    blocks = triton.cdiv(tiles.rank, _RANKS), triton.cdiv(side.width, _FEATURES)
    _outer[(len(side.slices_nf), *blocks)](
        source_tf,
        inner,
        parts_pn,
        side.slices_nf,
        source_tf.stride(0),
        side.size,
        fields=FIELDS,
        ranks=_RANKS,
        features=_FEATURES,
        depth=_DEPTH,
    )
    return parts_pn.sum(0).to(source_tf.dtype)


@triton.jit
def _narrow(
    source: tl.tensor,
    factor: tl.tensor,
    inner: tl.tensor,
    table: tl.tensor,
    scales: tl.tensor,
    source_stride: tl.tensor,
    fields: tl.constexpr,
    rows_a_tile: tl.constexpr,
    ranks: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    line = table + tl.program_id(0) * fields
    row, stop, rank = tl.load(line), tl.load(line + 1), tl.load(line + 3)
    if tl.program_id(1) * ranks < rank:
        width, rank_stride, feature_stride = tl.load(line + 5), tl.load(line + 7), tl.load(line + 8)
        source += row * source_stride + tl.load(line + 4)
        factor += tl.load(line + 6)
        rows_t, height = tl.arange(0, rows_a_tile), stop - row
        ranks_r = tl.program_id(1) * ranks + tl.arange(0, ranks)
        total_tr = tl.zeros((rows_a_tile, ranks), tl.float32)
        for start in range(0, width, depth):
            inputs_f = start + tl.arange(0, depth)
            source_tf = load_tile(source, rows_t, height, source_stride, inputs_f, width, 1)
            factor_fr = load_tile(
                factor, inputs_f, width, feature_stride, ranks_r, rank, rank_stride
            )
            total_tr = dot(source_tf, factor_fr, total_tr)
        total_tr *= tl.load(scales + tl.program_id(0))
        store_tile(inner + tl.load(line + 2), rows_t, height, rank, ranks_r, rank, 1, total_tr)


@triton.jit
def _widen(
    base: tl.tensor,
    inner: tl.tensor,
    factor: tl.tensor,
    target: tl.tensor,
    table: tl.tensor,
    base_stride: tl.tensor,
    target_stride: tl.tensor,
    fields: tl.constexpr,
    rows_a_tile: tl.constexpr,
    ranks: tl.constexpr,
    features: tl.constexpr,
) -> None:
    line = table + tl.program_id(0) * fields
    row, stop, width = tl.load(line), tl.load(line + 1), tl.load(line + 5)
    if tl.program_id(1) * features < width:
        rank, rank_stride, feature_stride = tl.load(line + 3), tl.load(line + 7), tl.load(line + 8)
        base += row * base_stride + tl.load(line + 4)
        target += row * target_stride + tl.load(line + 4)
        inner += tl.load(line + 2)
        factor += tl.load(line + 6)
        rows_t, height = tl.arange(0, rows_a_tile), stop - row
        outputs_f = tl.program_id(1) * features + tl.arange(0, features)
        base_tf = load_tile(base, rows_t, height, base_stride, outputs_f, width, 1)
        total_tf = base_tf.to(tl.float32)
        for start in range(0, rank, ranks):
            ranks_r = start + tl.arange(0, ranks)
            inner_tr = load_tile(inner, rows_t, height, rank, ranks_r, rank, 1)
            factor_rf = load_tile(
                factor, ranks_r, rank, rank_stride, outputs_f, width, feature_stride
            )
            total_tf = dot(inner_tr, factor_rf, total_tf)
        store_tile(target, rows_t, height, target_stride, outputs_f, width, 1, total_tf)


@triton.jit
def _outer(
    source: tl.tensor,
    inner: tl.tensor,
    parts: tl.tensor,
    table: tl.tensor,
    source_stride: tl.tensor,
    size: tl.tensor,
    fields: tl.constexpr,
    ranks: tl.constexpr,
    features: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    line = table + tl.program_id(0) * fields
    rank, width = tl.load(line + 3), tl.load(line + 5)
    if (tl.program_id(1) * ranks < rank) & (tl.program_id(2) * features < width):
        row, rank_stride, feature_stride = tl.load(line), tl.load(line + 7), tl.load(line + 8)
        height = tl.load(line + 1) - row
        source += row * source_stride + tl.load(line + 4)
        inner += tl.load(line + 2)
        ranks_r = tl.program_id(1) * ranks + tl.arange(0, ranks)
        inputs_f = tl.program_id(2) * features + tl.arange(0, features)
        total_rf = tl.zeros((ranks, features), tl.float32)
        for start in range(0, height, depth):
            rows_t = start + tl.arange(0, depth)
            inner_rt = load_tile(inner, ranks_r, rank, 1, rows_t, height, rank)
            source_tf = load_tile(source, rows_t, height, source_stride, inputs_f, width, 1)
            total_rf = dot(inner_rt, source_tf, total_rf)
        parts += tl.load(line + 9) * size + tl.load(line + 6)
        store_tile(parts, ranks_r, rank, rank_stride, inputs_f, width, feature_stride, total_rf)
