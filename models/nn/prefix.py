"""What stands before every sequence of an adapter, computed once: its keys and values.

Shapes: p rows of the prefix, K key and value heads, h head dimension, T rows of a stream.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.nn.attention import Recording, Span
from models.nn.backbone import Backbone
from models.nn.executors import Segment, Segments
from models.nn.terms import KeysValues, Terms

PIECE = 64
"""Rows that are computed without a pause."""


@dataclass(frozen=True)
class Prefix:
    """Keys, as a cache holds them, and values of every layer, (K, p, h) each."""

    keys: list[Tensor]
    values: list[Tensor]
    token_ids: tuple[int, ...] = ()
    """The tokens of the last of its rows, where those are tokens that requests begin with."""

    @property
    def rows(self) -> int:
        """How many positions it takes."""
        return int(self.keys[0].shape[1])

    @property
    def bytes(self) -> int:
        """What it occupies."""
        return sum(side.nbytes for side in (*self.keys, *self.values))


def compile_in_pieces(
    backbone: Backbone, terms: Terms, *, token_ids: Sequence[int] = (), rows: int = PIECE
) -> Generator[None, None, Prefix | None]:
    """Compute what stands before an adapter's sequences, and then before it `token_ids`.

    None where nothing does. The other terms of the adapter act on these rows too. Yields after
    every so many rows, so that whoever has other work may do it in between; for use without
    gradients.
    """
    ids_t = torch.tensor(token_ids, dtype=torch.int64, device=backbone.device)
    rows_td = backbone.embed(ids_t)
    if terms.prompt is not None:
        rows_td = torch.cat([terms.prompt, rows_td])
    if not len(rows_td) and not terms.static_rows:
        return None
    known = dict(terms.keys_values)
    for start in range(0, len(rows_td), rows):
        if start:
            yield
        piece_td = rows_td[start : start + rows]
        known = _extend(backbone, terms, piece_td, known, first=terms.static_rows + start)
    sides = [known[layer] for layer in sorted(known)]
    return Prefix([side.keys for side in sides], [side.values for side in sides], tuple(token_ids))


def _extend(
    backbone: Backbone,
    terms: Terms,
    rows_td: Tensor,
    known: Mapping[int, KeysValues],
    *,
    first: int,
) -> dict[int, KeysValues]:
    """Return keys and values of what is known and of the rows that come next, by layer."""
    recording = Recording([Span(0, len(rows_td), known or None)])
    backbone.hidden(
        rows_td,
        positions=torch.arange(first, first + len(rows_td), device=backbone.device),
        attention=recording,
        executor=Segments([Segment(0, len(rows_td), terms)]),
    )
    fresh = zip(recording.keys, recording.values, strict=True)
    return {
        layer: _behind(known.get(layer), keys, values) for layer, (keys, values) in enumerate(fresh)
    }


def _behind(before: KeysValues | None, keys_kth: Tensor, values_kth: Tensor) -> KeysValues:
    if before is None:
        return KeysValues(keys_kth, values_kth)
    return KeysValues(
        torch.cat([before.keys, keys_kth], dim=1), torch.cat([before.values, values_kth], dim=1)
    )
