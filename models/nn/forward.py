"""The pass without a cache that training, evaluation and prefixes share: adapters' parts in a row.

Shapes: T rows of the parts' sequences, p rows of a prompt, d hidden, N rows whose logits are
wanted, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from models.nn.attention import PackedCausal, Span
from models.nn.backbone import Backbone
from models.nn.executors import NOBODY, DropoutSource, Executor, Segment, Segments
from models.nn.lineage import NONE, Tree
from models.nn.terms import Terms


@dataclass(frozen=True)
class Part:
    """Sequences end to end, the adapter that acts on them, and what it drops in training."""

    ids_t: Tensor
    """int64"""
    lengths: tuple[int, ...]
    terms: Terms | None = None
    dropout: DropoutSource | None = None
    tree: Tree | None = None
    """The same sequences with what they share laid down once; only for terms without dropout."""
    read_n: Tensor | None = None
    """Rows of the sequences (int64) whose final states are read; without, all are."""

    @property
    def read(self) -> int:
        """Of how many rows the final states are read."""
        return sum(self.lengths) if self.read_n is None else len(self.read_n)

    @property
    def rows(self) -> int:
        """How many rows it takes in a stream, its prompt's included."""
        own = sum(self.tree.lengths if self.tree else self.lengths)
        return own + (self.terms.prompt_rows if self.terms else 0)


@dataclass(frozen=True)
class States:
    """The final-normed hidden states that are read, and how to go on to logits."""

    hidden_td: Tensor
    backbone: Backbone
    executor: Executor
    segments: tuple[Segment, ...] = ()
    """Where each part lies, prompts left out."""

    def of(self, part: int) -> "States":
        """Return the states of one part, as if no other had been there."""
        return self._only(self.segments[part])

    def piece(self, start: int, stop: int) -> "States":
        """Return some rows of the states of one part; where it drops, each piece draws its own."""
        (segment,) = self.segments
        dropout = segment.dropout and replace(segment.dropout, first_row=start)
        stop = min(stop, len(self.hidden_td))
        return self._only(replace(segment, start=start, stop=stop, dropout=dropout))

    def logits(self, hidden_nd: Tensor, rows_n: Tensor) -> Tensor:
        """Return (N, V) from the hidden states of these rows (int64)."""
        return self.backbone.logits(hidden_nd, executor=self.executor.at(rows_n))

    def _only(self, segment: Segment) -> "States":
        own = replace(segment, start=0, stop=segment.stop - segment.start)
        return States(self.hidden_td[segment.rows], self.backbone, Segments([own]), (own,))


def forward(backbone: Backbone, parts: Sequence[Part]) -> States:
    """Compute all parts as one stream; a part's prompt enters it once, before its sequences.

    ValueError for several parts of which one replaces the network's own weights.
    """
    stream = _Stream()
    for part in parts:
        stream.add(part, backbone)
    weights = [part.terms.weights for part in parts if part.terms and part.terms.weights]
    if weights and len(parts) > 1:
        raise ValueError("An adapter of whole weights cannot share a stream.")
    if weights:
        backbone = backbone.using(weights[0])
    acting = any(part.terms is not None for part in parts)
    executor: Executor = Segments(stream.segments) if acting else NOBODY
    ids_t = torch.cat([part.tree.ids_t if part.tree else part.ids_t for part in parts])
    has_prompts = len(ids_t) < stream.length
    some = has_prompts or any(part.tree or part.read_n is not None for part in parts)
    rows_n = torch.cat(stream.rows) if some else None
    hidden_nd = backbone.hidden(
        stream.embeddings(backbone, ids_t) if has_prompts else ids_t,
        positions=torch.cat(stream.positions),
        attention=PackedCausal(stream.spans),
        executor=executor,
        rows_n=rows_n,
    )
    executor = executor if rows_n is None else executor.at(rows_n)
    bounds = pairwise(accumulate((part.read for part in parts), initial=0))
    own = (Segment(*at, p.terms, p.dropout) for at, p in zip(bounds, parts, strict=True))
    return States(hidden_nd, backbone, executor, tuple(own))


class _Stream:
    """Where everything lies while the parts are laid out."""

    def __init__(self) -> None:
        self.length = 0
        self.spans: list[Span] = []
        self.segments: list[Segment] = []
        self.positions: list[Tensor] = []
        self.rows: list[Tensor] = []
        """Where the rows of the parts' sequences lie that are read, in their order."""
        self._pieces: list[tuple[int, Tensor | None]] = []

    def add(self, part: Part, backbone: Backbone) -> None:
        """Lay a part's prompt and its sequences at the end."""
        terms, device = part.terms or Terms(), backbone.device
        first, static = self.length, terms.keys_values or None
        root = NONE
        if terms.prompt is not None:
            root = len(self.spans)
            self._put(terms.prompt, len(terms.prompt))
            self.spans.append(Span(first, self.length, static))
            self.positions.append(torch.arange(terms.static_rows, terms.prefix_rows, device=device))
        begins, runs = self.length, len(self.spans)
        lengths = part.tree.lengths if part.tree else part.lengths
        parents = part.tree.parents if part.tree else (NONE,) * len(lengths)
        self._put(None, sum(lengths))
        rows_t = begins + (
            part.tree.rows_t if part.tree else torch.arange(self.length - begins, device=device)
        )
        self.rows.append(rows_t if part.read_n is None else rows_t[part.read_n])
        ends: list[int] = []
        bounds = pairwise(accumulate(lengths, initial=begins))
        for (start, stop), parent in zip(bounds, parents, strict=True):
            position = terms.prefix_rows if parent == NONE else ends[parent]
            ends.append(position + stop - start)
            self.positions.append(torch.arange(position, ends[-1], device=device))
            self.spans.append(Span(start, stop, static, root if parent == NONE else runs + parent))
        self.segments.append(Segment(first, self.length, part.terms, part.dropout))

    def embeddings(self, backbone: Backbone, ids_t: Tensor) -> Tensor:
        """Return the whole stream as rows: prompts as they are, ids embedded."""
        lengths = [length for length, prompt in self._pieces if prompt is None]
        embedded = iter(torch.split(backbone.embed(ids_t), lengths))
        return torch.cat(
            [next(embedded) if prompt is None else prompt for _, prompt in self._pieces]
        )

    def _put(self, prompt: Tensor | None, length: int) -> None:
        self._pieces.append((length, prompt))
        self.length += length
