"""Attention over flat streams: who may look at whom is decided here, not in the backbone.

Shapes: T rows of the stream, H query heads, K key and value heads, h head dimension, n rows of
one sequence, s keys that it sees, g query heads that share a key head, G = H + 2 K.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.kernels import ops
from models.nn.lineage import NONE, lineage
from models.nn.terms import KeysValues


class Attention(Protocol):
    """What the backbone calls for the core attention of every layer."""

    def attend(
        self,
        layer: int,
        query_hth: Tensor,
        key_kth: Tensor,
        value_kth: Tensor,
        /,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Return (T, H, h) from query (H, T, h) and key and value (K, T, h), already rotated.

        `window` is how many positions a row sees, itself included; `softcap` bounds the scores
        by `cap * tanh(score / cap)`.
        """

    def attend_joined(
        self, layer: int, heads_tgh: Tensor, /, *, kv_heads: int, scale: float
    ) -> Tensor:
        """Return (T, H, h) from query, key and value heads side by side, (T, G, h)."""
        query_hth, key_kth, value_kth = split_heads(heads_tgh, kv_heads=kv_heads)
        return self.attend(
            layer, query_hth, key_kth, value_kth, scale=scale, window=None, softcap=None
        )


class Span(NamedTuple):
    """Rows [start, stop) of one sequence and what stands before them, which all of them see."""

    start: int
    stop: int
    static: Mapping[int, KeysValues] | None = None
    """By layer: keys and values from elsewhere, first of all."""
    parent: int = NONE
    """The earlier span that it goes on from, with all that stands before that."""


class _Stretch(NamedTuple):
    """Neighbours behind the same static keys, or none: one op computes them."""

    start: int
    stop: int
    bounds: tuple[int, ...]
    parents: tuple[int, ...]
    """Both counted from its first span on."""
    static: Mapping[int, KeysValues] | None

    @classmethod
    def of(cls, numbers: Sequence[int], spans: Sequence[Span]) -> "_Stretch":
        """Take spans by their numbers; who goes on from one of them is among them."""
        own = [spans[number] for number in numbers]
        start = own[0].start
        bounds = (0, *(span.stop - start for span in own))
        parents = (NONE if span.parent == NONE else span.parent - numbers[0] for span in own)
        return cls(start, own[-1].stop, bounds, tuple(parents), own[0].static or None)

    def attend(self, layer: int, heads_tgh: Tensor, *, kv_heads: int, scale: float) -> Tensor:
        """Return (t, H, h) for its rows; static keys are a sequence that all others go on from."""
        own_tgh = _rows(heads_tgh, self.start, self.stop)
        bounds, parents = self.bounds, self.parents
        static = None if self.static is None else self.static[layer]
        first = 0 if static is None else static.keys.shape[1]
        if static is not None:
            before_pgh = _as_rows(static, heads=heads_tgh.shape[1])
            own_tgh = torch.cat([before_pgh, own_tgh])
            bounds = (0, *(first + bound for bound in bounds))
            parents = (NONE, *(0 if parent == NONE else parent + 1 for parent in parents))
        output_thh = ops(heads_tgh.device).attend_packed(
            own_tgh, kv_heads=kv_heads, scale=scale, bounds=bounds, parents=parents
        )
        return _rows(output_thh, first, len(output_thh))


def _rows(stream_tf: Tensor, start: int, stop: int) -> Tensor:
    """Return rows of a stream; all of them are itself, for the gradient of a slice is a copy."""
    return stream_tf if (start, stop) == (0, len(stream_tf)) else stream_tf[start:stop]


def split_heads(heads_tgh: Tensor, *, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views (H, T, h), (K, T, h) and (K, T, h) of heads side by side, (T, G, h)."""
    heads = heads_tgh.shape[1] - 2 * kv_heads
    query_hth, key_kth, value_kth = torch.split(
        heads_tgh.transpose(0, 1), [heads, kv_heads, kv_heads]
    )
    return query_hth, key_kth, value_kth


class PackedCausal(Attention):
    """Causal attention within sequences laid end to end, or in a tree; differentiable, no cache."""

    def __init__(self, sequences: Sequence[tuple[int, int] | Span]) -> None:
        """Take the spans of the sequences; together they must tile the stream."""
        self.spans = tuple(Span(*sequence) for sequence in sequences)
        bounds = [(0, 0), *((span.start, span.stop) for span in self.spans)]
        if any(before[1] != after[0] for before, after in pairwise(bounds)):
            raise ValueError("Sequences must follow each other without gap or overlap.")
        if any(span.start >= span.stop for span in self.spans):
            raise ValueError("A sequence must have at least one row.")
        self._parents = [span.parent for span in self.spans]
        if any(parent >= own for own, parent in enumerate(self._parents)):
            raise ValueError("A sequence can only go on from an earlier one.")
        self._stretches = [
            _Stretch.of(tuple(numbers), self.spans)
            for _, numbers in groupby(
                range(len(self.spans)), lambda one: id(self.spans[one].static or None)
            )
        ]
        self._masks: dict[tuple[int, int, int | None, torch.device], Tensor] = {}
        self._bounds = [bound for _, bound in bounds]
        self._joins = True
        """Whether spans may be left to one op."""

    def attend_joined(
        self, layer: int, heads_tgh: Tensor, *, kv_heads: int, scale: float
    ) -> Tensor:
        """See `Attention.attend_joined`."""
        if not self._joins or len(heads_tgh) != self._bounds[-1]:
            return super().attend_joined(layer, heads_tgh, kv_heads=kv_heads, scale=scale)
        outputs = [
            stretch.attend(layer, heads_tgh, kv_heads=kv_heads, scale=scale)
            for stretch in self._stretches
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def as_one(self, rows: int) -> tuple[Sequence[int], Sequence[int]] | None:
        """Return bounds and parents as `attend_packed` takes them, if it is all for so many rows.

        Not where keys from elsewhere stand before a sequence.
        """
        if not self._joins or rows != self._bounds[-1] or len(self._stretches) > 1:
            return None
        (stretch,) = self._stretches
        return None if stretch.static else (stretch.bounds, stretch.parents)

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
        """See `Attention.attend`; raises ValueError where the sequences do not fill the rows."""
        if query_hth.shape[1] != self.spans[-1].stop:
            raise ValueError(f"{query_hth.shape[1]} rows, but {self.spans[-1].stop} in sequences")
        sides = (query_hth, key_kth, value_kth)
        return self._attend_spans(
            range(len(self.spans)), layer, *sides, scale=scale, window=window, softcap=softcap
        )

    def _attend_spans(
        self,
        numbers: Sequence[int],
        layer: int,
        query_hth: Tensor,
        key_kth: Tensor,
        value_kth: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Return (t, H, h): these sequences one by one, end to end."""
        outputs = []
        for number in numbers:
            span = self.spans[number]
            query_hnh = query_hth[:, span.start : span.stop]
            line = [self.spans[up] for up in lineage(self._parents, number)]
            key_ksh = _seen(key_kth, line, _static(span, layer, "keys"))
            value_ksh = _seen(value_kth, line, _static(span, layer, "values"))
            rows, seen = query_hnh.shape[1], key_ksh.shape[1]
            mask_ns = None
            if softcap is not None or seen > rows or (window is not None and window < rows):
                mask_ns = self._mask(rows, seen, window, query_hth.device)
            sides = (query_hnh, key_ksh, value_ksh)
            if softcap is None:
                outputs.append(_attend_plain(*sides, scale=scale, mask_ns=mask_ns))
            else:
                outputs.append(_attend_capped(*sides, scale=scale, mask_ns=mask_ns, cap=softcap))
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _mask(self, rows: int, seen: int, window: int | None, device: torch.device) -> Tensor:
        """Return (n, s) bool, true where a row may see a key; built once per pair of lengths."""
        key = (rows, seen, window, device)
        if key not in self._masks:
            keys_s = torch.arange(seen, device=device)
            self._masks[key] = causal_mask(keys_s[seen - rows :], keys_s, window=window)
        return self._masks[key]


class Recording(PackedCausal):
    """Keeps what a cache would keep: rotated keys and values (K, T, h), layer by layer."""

    def __init__(self, sequences: Sequence[tuple[int, int] | Span]) -> None:
        """See `PackedCausal`."""
        super().__init__(sequences)
        self._joins = False
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

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
        """See `Attention.attend`; layers come in order."""
        self.keys.append(key_kth.contiguous())
        self.values.append(value_kth.contiguous())
        return super().attend(
            layer, query_hth, key_kth, value_kth, scale=scale, window=window, softcap=softcap
        )


def causal_mask(query_t: Tensor, key_s: Tensor, *, window: int | None) -> Tensor:
    """Return (t, s) bool from two vectors of positions: no future, and nothing beyond a window."""
    distance_ts = query_t[:, None] - key_s[None, :]
    visible_ts = distance_ts >= 0
    return visible_ts if window is None else visible_ts & (distance_ts < window)


def _as_rows(static: KeysValues, *, heads: int) -> Tensor:
    """Return (p, G, h): static keys and values as the rows of a stream, whose queries are zero."""
    keys_pkh, values_pkh = static.keys.transpose(0, 1), static.values.transpose(0, 1)
    rows, kv_heads, dimension = keys_pkh.shape
    query_phh = keys_pkh.new_zeros(rows, heads - 2 * kv_heads, dimension)
    return torch.cat([query_phh, keys_pkh, values_pkh], dim=1)


def _static(span: Span, layer: int, side: str) -> Tensor | None:
    return getattr(span.static[layer], side) if span.static else None


def _seen(stream_kth: Tensor, line: Sequence[Span], static_kph: Tensor | None) -> Tensor:
    """Return (K, s, h): what stands before a sequence, then its own rows."""
    pieces = [] if static_kph is None else [static_kph]
    pieces += [stream_kth[:, span.start : span.stop] for span in line]
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]


def _attend_plain(
    query_hnh: Tensor, key_ksh: Tensor, value_ksh: Tensor, *, scale: float, mask_ns: Tensor | None
) -> Tensor:
    """Return (H, n, h); grouped heads read their key head in place, without a copy."""
    return F.scaled_dot_product_attention(
        query_hnh[None],
        key_ksh[None],
        value_ksh[None],
        attn_mask=mask_ns,
        is_causal=mask_ns is None,
        scale=scale,
        enable_gqa=query_hnh.shape[0] != key_ksh.shape[0],
    )[0]


def _attend_capped(
    query_hnh: Tensor,
    key_ksh: Tensor,
    value_ksh: Tensor,
    *,
    scale: float,
    mask_ns: Tensor | None,
    cap: float,
) -> Tensor:
    """Return (H, n, h) with bounded scores (Gemma 2, arXiv 2408.00118 section 2)."""
    query_kgnh = query_hnh.view(key_ksh.shape[0], -1, *query_hnh.shape[1:])
    scores_kgns = query_kgnh @ key_ksh[:, None].transpose(-1, -2) * scale
    scores_kgns = cap * torch.tanh(scores_kgns / cap)
    if mask_ns is not None:
        scores_kgns = scores_kgns.masked_fill(~mask_ns, float("-inf"))
    weights_kgns = scores_kgns.softmax(-1, dtype=torch.float32).to(value_ksh.dtype)
    return (weights_kgns @ value_ksh[:, None]).flatten(0, 1)
