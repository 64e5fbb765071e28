"""Keys and values of all rows, one slot a row, attended where they lie.

Shapes: R slots, K key and value heads, C positions of a slot, h head dimension, L layers,
T rows of the stream, H query heads, G query heads that share a key head, n leading slots, s length.
"""

import math
import mmap
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.attention import Attention, causal_mask
from models.nn.prefix import Prefix
from models.nn.shape import Shape
from worker.engine.tree import Tree

Pair = tuple[Tensor, Tensor]
"""Keys and values."""

LENGTH_STEP = 64
"""Decoding attends over lengths that are multiples of this, so that shapes repeat."""


class Blocks:
    """The cache of one engine; memory that no row has reached costs nothing.

    It may be of a smaller dtype than what the network computes in.
    """

    def __init__(
        self, shape: Shape, *, rows: int, context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Reserve (2, L, R, K, C + 1, h); rows that only fill a hole write to the last position."""
        self.device = device
        self.dtype = dtype
        self.rows = rows
        self.context = context
        self.spare = context
        size = (2, shape.layers, rows, shape.kv_heads, context + 1, shape.head_dim)
        self._all = _zeros(size, dtype=dtype, device=device)
        self.keys, self.values = (list(side.unbind()) for side in self._all.unbind())

    def nbytes(self, positions: int) -> int:
        """Return the bytes of so many positions of one slot."""
        return positions * self._all[:, :, 0, :, 0].numel() * self._all.itemsize

    def fill(self, slot: int, prefix: Prefix, *, length: int) -> None:
        """Write the first `length` positions of a slot from what was computed at load."""
        for caches, sides in ((self.keys, prefix.keys), (self.values, prefix.values)):
            for cache_rkch, side_kph in zip(caches, sides, strict=True):
                cache_rkch[slot, :, :length] = side_kph[:, :length]

    def read(self, slot: int, *, start: int, stop: int) -> Tensor:
        """Return a copy of positions [start, stop) of a slot, (2, L, K, stop - start, h)."""
        return self._all[:, :, slot, :, start:stop].clone()

    def write(self, slot: int, block: Tensor, *, start: int) -> None:
        """Write what `read` gave to the positions of a slot from `start` on."""
        self._all[:, :, slot, :, start : start + block.shape[3]] = block

    def move(self, source: int, target: int, *, length: int) -> None:
        """Move the first `length` positions of one slot to another; they are zeros then."""
        self._all[:, :, target, :, :length] = self._all[:, :, source, :, :length]
        self.wipe(source, length=length)

    def wipe(self, slot: int, *, length: int, start: int = 0) -> None:
        """Zero `length` positions of a slot from `start` on.

        A NaN that a failed row left there would reach the next owner through a weight of zero.
        """
        self._all[:, :, slot, :, start : start + length] = 0


def _zeros(size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU from pages that the kernel provides at the first write."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(size) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(size)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [first, last) of the stream: positions [start, stop) of one slot."""

    slot: int
    first: int
    last: int
    start: int
    stop: int
    tree: Tree | None = None
    trunk: int = 0
    """With a tree: where in the slot its nodes begin."""


class Limits(NamedTuple):
    """How one layer's scores are scaled and cut."""

    scale: float
    window: int | None
    softcap: float | None


class MixedAttention(Attention):
    """The attention of one step: leading rows decode, one a slot in order; then come chunks.

    Decode row i belongs to slot i and stands at `positions[i]`, or is None: then it only keeps the
    rows in step with the slots. Rows after the last chunk are padding and get zeros.
    """

    def __init__(
        self, blocks: Blocks, *, positions: Sequence[int | None], spans: Sequence[Span]
    ) -> None:
        self._blocks = blocks
        self._spans = spans
        self._rows = len(positions)
        self._masks: dict[tuple[Span | None, int | None], Tensor] = {}
        reached = max((position or 0 for position in positions), default=0) + 1
        self._length = min(-(-reached // LENGTH_STEP) * LENGTH_STEP, blocks.context)
        seen = [position or 0 for position in positions]
        written = [blocks.spare if position is None else position for position in positions]
        self._stand(
            torch.tensor(seen, device=blocks.device), torch.tensor(written, device=blocks.device)
        )

    @property
    def reach(self) -> tuple[int, int] | None:
        """How many rows decode over how many positions, or None where there are chunks too."""
        return None if self._spans else (self._rows, self._length)

    @property
    def standing(self) -> tuple[Tensor, Tensor]:
        """For each decode row, (n,) int64: the last position it sees, and the one it writes."""
        return self._seen_n, self._place[2]

    def moved(self, seen_n: Tensor, written_n: Tensor) -> "MixedAttention":
        """Return the same attention for rows that stand elsewhere within its reach."""
        other = copy(self)
        other._masks = {}  # noqa: SLF001 - of our own kind
        other._stand(seen_n, written_n)  # noqa: SLF001
        return other

    def _stand(self, seen_n: Tensor, written_n: Tensor) -> None:
        rows_n = torch.arange(self._rows, device=self._blocks.device)
        self._seen_n, self._place = seen_n, (rows_n, slice(None), written_n)

    def attend(
        self,
        layer: int,
        query_hth: Tensor,
        key_kth: Tensor,
        value_kth: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Write the new keys and values to their slots, then attend; see `Attention.attend`."""
        limits = Limits(scale, window, softcap)
        cache = self._blocks.keys[layer], self._blocks.values[layer]
        new = key_kth, value_kth
        total, leading = query_hth.shape[1], slice(self._rows)
        if total == self._rows:
            return self._decode(query_hth, new, cache=cache, limits=limits)
        output_thh = query_hth.new_zeros(total, query_hth.shape[0], query_hth.shape[2])
        if self._rows:
            decoding = key_kth[:, leading], value_kth[:, leading]
            output_thh[leading] = self._decode(
                query_hth[:, leading], decoding, cache=cache, limits=limits
            )
        for span in self._spans:
            rows = slice(span.first, span.last)
            chunk = key_kth[:, rows], value_kth[:, rows]
            output_thh[rows] = self._prefill(
                query_hth[:, rows], chunk, cache=cache, span=span, limits=limits
            )
        return output_thh

    def _decode(self, query_hnh: Tensor, new: Pair, *, cache: Pair, limits: Limits) -> Tensor:
        """Return (n, H, h); queries that share a key head are rows of one product."""
        for cache_rkch, new_knh in zip(cache, new, strict=True):
            cache_rkch[self._place] = new_knh.transpose(0, 1).to(cache_rkch.dtype)
        keys_nksh, values_nksh = (
            side[: self._rows, :, : self._length].to(query_hnh.dtype) for side in cache
        )
        query_nkgh = _group(query_hnh.transpose(0, 1), 1, keys_nksh.shape[1])
        mask_n11s = self._decode_mask(query_hnh, limits.window)
        attend = _attend if limits.softcap is None else _attend_capped
        return attend(query_nkgh, keys_nksh, values_nksh, mask=mask_n11s, limits=limits).flatten(
            1, 2
        )

    def _prefill(
        self, query_hth: Tensor, new: Pair, *, cache: Pair, span: Span, limits: Limits
    ) -> Tensor:
        """Return (t, H, h) for one chunk, over its own slot up to its own last position."""
        for cache_rkch, new_kth in zip(cache, new, strict=True):
            cache_rkch[span.slot, :, span.start : span.stop] = new_kth
        keys_ksh, values_ksh = (
            side[span.slot, :, : span.stop].to(query_hth.dtype) for side in cache
        )
        query_kgth = _group(query_hth, 0, keys_ksh.shape[0])
        mask_ts = self._prefill_mask(query_hth, span, limits.window)
        attend = _attend if limits.softcap is None else _attend_capped
        shared = keys_ksh[:, None].expand(-1, query_kgth.shape[1], -1, -1)
        shared_values = values_ksh[:, None].expand(-1, query_kgth.shape[1], -1, -1)
        output_kgth = attend(query_kgth, shared, shared_values, mask=mask_ts, limits=limits)
        return output_kgth.flatten(0, 1).transpose(0, 1)

    def _decode_mask(self, query_hnh: Tensor, window: int | None) -> Tensor:
        if (None, window) not in self._masks:
            reach_s = torch.arange(self._length, device=query_hnh.device)
            visible_ns = causal_mask(self._seen_n, reach_s, window=window)
            self._masks[None, window] = _additive(visible_ns, query_hnh.dtype)[:, None, None]
        return self._masks[None, window]

    def _prefill_mask(self, query_hth: Tensor, span: Span, window: int | None) -> Tensor:
        if (span, window) not in self._masks:
            reach_s = torch.arange(span.stop, device=query_hth.device)
            if span.tree is None:
                visible_ts = causal_mask(reach_s[span.start :], reach_s, window=window)
            else:
                bounds = span.start, span.stop
                visible_ts = span.tree.visible(*bounds, trunk=span.trunk, window=window)
                visible_ts = visible_ts.to(query_hth.device)
            self._masks[span, window] = _additive(visible_ts, query_hth.dtype)
        return self._masks[span, window]


def _group(query: Tensor, dimension: int, heads: int) -> Tensor:
    """Split the heads at `dimension` into (K, G): those that share a key head are adjacent."""
    grouped: Tensor = query.unflatten(dimension, (heads, -1))  # type: ignore[no-untyped-call]
    return grouped


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, float("-inf"))


def _attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, limits: Limits) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=limits.scale)


def _attend_capped(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, limits: Limits
) -> Tensor:
    """Bound the scores by `cap * tanh(score / cap)` (Gemma 2, arXiv 2408.00118 section 2)."""
    cap = limits.softcap or math.inf
    scores = cap * torch.tanh(query @ key.transpose(-1, -2) * limits.scale / cap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
