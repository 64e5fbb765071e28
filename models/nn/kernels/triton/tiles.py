"""Which rows meet which factors: the block tables of grouped low-rank products.

An update multiplies rows of a stream by two factors: down (r, i), then up (o, r). Each has a side:
there a *tile* is up to `TILE` rows of one update, and a *slice* is up to `SLICE` rows, over which
gradients of factors are summed. Factors of all updates lie flat behind each other, each at its own
rank, as do the rows between the factors. Shapes: s tiles, n slices, f fields, w widest features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.nn.kernels.table import Update

Name = Literal["down", "up"]

TILE = 64
SLICE = 512


class Extent(NamedTuple):
    """Where one update acts, as `Update` says it; hashable."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    rank: int
    scale: float


class Fields(NamedTuple):
    """One line of a table: rows, their place between the factors, and one factor's place."""

    row: int
    stop: int
    inner: int
    """Where the first row's numbers lie between the factors; a row has `rank` of them."""
    rank: int
    feature: int
    """The first column of the stream on this side."""
    width: int
    factor: int
    """Where the factor begins."""
    rank_stride: int
    feature_stride: int
    part: int
    """Of a slice: which one of its update."""


FIELDS = len(Fields._fields)


@dataclass(frozen=True)
class Side:
    """One factor of all updates."""

    tiles_sf: Tensor
    slices_nf: Tensor
    width: int
    """The widest."""
    size: int
    """Numbers in all factors."""


@dataclass(frozen=True)
class Tiles:
    """The tables of some updates; tiles of one round share no row."""

    down: Side
    up: Side
    scales_s: Tensor
    rounds: tuple[tuple[int, int], ...]
    rank: int
    """The highest."""
    inner: int
    """Numbers between the factors."""
    parts: int
    """The most slices that one update has."""


def tiles_of(updates: Sequence[Update], *, inputs: int, device: torch.device) -> Tiles:
    """Return the tables of updates of rows that have so many inputs; kept, as layers repeat."""
    extents = tuple(Extent(u.rows, u.columns, len(u.down_ri), u.scale) for u in updates)
    return _build(extents, inputs, device)


@lru_cache(maxsize=64)
def _build(extents: tuple[Extent, ...], inputs: int, device: torch.device) -> Tiles:
    rounds = _rounds(extents)
    bounds = [0, *accumulate(sum(_count(extents[index]) for index in chosen) for chosen in rounds)]
    order = [index for chosen in rounds for index in chosen]
    scales = [extents[index].scale for index in order for _ in range(_count(extents[index]))]
    heights = [extent.rows[1] - extent.rows[0] for extent in extents]
    return Tiles(
        down=_side(extents, order, side="down", inputs=inputs, device=device),
        up=_side(extents, order, side="up", inputs=inputs, device=device),
        scales_s=torch.tensor(scales, device=device),
        rounds=tuple(pairwise(bounds)),
        rank=max(extent.rank for extent in extents),
        inner=sum(height * extent.rank for height, extent in zip(heights, extents, strict=True)),
        parts=max(-(-height // SLICE) for height in heights),
    )


def _count(extent: Extent) -> int:
    return -(-(extent.rows[1] - extent.rows[0]) // TILE)


def _side(
    extents: Sequence[Extent],
    order: Sequence[int],
    *,
    side: Name,
    inputs: int,
    device: torch.device,
) -> Side:
    """Return the tables of one side, updates in this order."""
    tiles, slices = (
        [
            line
            for index in order
            for line in _lines(extents, index, side=side, inputs=inputs, height=height)
        ]
        for height in (TILE, SLICE)
    )
    return Side(
        torch.tensor(tiles, device=device),
        torch.tensor(slices, device=device),
        width=max(line.width for line in tiles),
        size=sum(_size(extent, side=side, inputs=inputs) for extent in extents),
    )


def _rounds(extents: Sequence[Extent]) -> list[list[int]]:
    """Share the updates out so that those of one round have no row in common."""
    rounds: list[list[int]] = []
    for index, extent in enumerate(extents):
        for chosen in rounds:
            if not any(_overlap(extents[other].rows, extent.rows) for other in chosen):
                chosen.append(index)
                break
        else:
            rounds.append([index])
    return rounds


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _lines(
    extents: Sequence[Extent], index: int, *, side: Name, inputs: int, height: int
) -> Iterator[Fields]:
    """Go through the tiles or slices of one update."""
    extent, before = extents[index], extents[:index]
    (start, stop), rank = extent.rows, extent.rank
    inner = sum((other.rows[1] - other.rows[0]) * other.rank for other in before)
    is_down = side == "down"
    for part, row in enumerate(range(start, stop, height)):
        yield Fields(
            row=row,
            stop=min(row + height, stop),
            inner=inner + (row - start) * rank,
            rank=rank,
            feature=0 if is_down else extent.columns[0],
            width=inputs if is_down else extent.columns[1] - extent.columns[0],
            factor=sum(_size(other, side=side, inputs=inputs) for other in before),
            rank_stride=inputs if is_down else 1,
            feature_stride=1 if is_down else rank,
            part=part,
        )


def _size(extent: Extent, *, side: Name, inputs: int) -> int:
    return extent.rank * (inputs if side == "down" else extent.columns[1] - extent.columns[0])
