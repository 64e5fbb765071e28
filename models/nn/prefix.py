"""What stands before every sequence of an adapter, computed once: its keys and values.

Shapes: p rows of the prefix, K key and value heads, h head dimension, T rows of a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.nn.attention import Recording, Span
from models.nn.backbone import Backbone
from models.nn.executors import Segment, Segments
from models.nn.terms import Terms


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


@torch.no_grad()
def compile_prefix(
    backbone: Backbone, terms: Terms, *, token_ids: Sequence[int] = ()
) -> Prefix | None:
    """Compute what stands before an adapter's sequences, and then before it `token_ids`.

    None where nothing does. The other terms of the adapter act on these rows too.
    """
    ids_t = torch.tensor(token_ids, dtype=torch.int64, device=backbone.device)
    rows_td = backbone.embed(ids_t)
    if terms.prompt is not None:
        rows_td = torch.cat([terms.prompt, rows_td])
    if not len(rows_td) and not terms.static_rows:
        return None
    static = [terms.keys_values[layer] for layer in sorted(terms.keys_values)]
    keys, values = [term.keys for term in static], [term.values for term in static]
    if len(rows_td):
        recording = Recording([Span(0, len(rows_td), terms.keys_values or None)])
        first = terms.static_rows
        backbone.hidden(
            rows_td,
            positions=torch.arange(first, first + len(rows_td), device=backbone.device),
            attention=recording,
            executor=Segments([Segment(0, len(rows_td), terms)]),
        )
        keys = _join(keys, recording.keys)
        values = _join(values, recording.values)
    return Prefix(keys, values, tuple(token_ids))


def _join(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """Return, layer by layer, one behind the other; `before` may be empty."""
    if not before:
        return after
    return [torch.cat(pair, dim=1) for pair in zip(before, after, strict=True)]
