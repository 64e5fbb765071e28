"""One step as one forward: tokens of all kinds laid out flat, and of the output what is wanted.

Shapes: T rows of the stream, d hidden, N rows whose logits are wanted, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.executors import NOBODY, Executor, Packed
from models.nn.terms import Terms
from worker.engine.banks import Banks
from worker.engine.blocks import Blocks, MixedAttention
from worker.engine.graphs import Graphs
from worker.engine.layout import Layout, bucket, lay_out
from worker.engine.sampler import Asked, Drawn, score
from worker.engine.scheduler import Chunk, Step
from worker.engine.sequence import Choice

SCORED_AT_ONCE = 64
"""Rows whose logits are held at once to be scored; a vocabulary is wide."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step gives: logits, float32, of every row that draws a token, and what was read."""

    rows: list[Choice]
    logits_nv: Tensor
    scores: list[tuple[Chunk, list[Drawn]]]
    """Of each chunk with something to score, that, in order."""
    pooled: list[tuple[Chunk, Tensor]]
    """Of each chunk that is pooled, (d,) float32: the sum of its rows, or the prompt's last."""


class _Wanted(NamedTuple):
    """A token to score behind a row of the stream."""

    place: int
    token: int
    top: int
    chunk: int


class Runner:
    """Computes steps; keeps the bank of each group's adapters from one step to the next."""

    def __init__(self, backbone: Backbone, blocks: Blocks, *, graphs: Graphs | None = None) -> None:
        """Take the base and its cache, and where decode steps are recorded, if they can be."""
        self._backbone = backbone
        self._blocks = blocks
        self._banks = Banks()
        self._graphs = graphs

    def run(self, step: Step, *, terms: Mapping[str, Terms]) -> Outcome:
        """Compute a step; `terms` holds, by digest, at least the adapters of its sequences."""
        layout = lay_out(step, rows=self._blocks.rows)
        executor = self._banks.executor(
            step.group, layout.owners, terms=terms, device=self._backbone.device
        )
        backbone = self._backbone
        if step.group is not None:
            backbone = backbone.using(terms[step.group].weights)
        hidden_td = self._hidden(backbone, layout, executor=executor, group=step.group)
        call = _Call(backbone, executor, hidden_td)
        rows, wanted = _drawing(step, layout)
        logits_nv = call.logits(wanted)
        return Outcome(rows, logits_nv, _score(call, step, layout), _pool(step, layout, hidden_td))

    def warm_up(self) -> None:
        """Compute one step of every bucket of rows, so that no request pays for a first time."""
        rows = self._blocks.rows
        for count in sorted({min(bucket(row), rows) for row in range(1, rows + 1)}):
            nobody: list[int | None] = [None] * count
            zeros_t = self._tensor([0] * count)
            hidden_td = self._backbone.hidden(
                zeros_t,
                positions=zeros_t,
                attention=MixedAttention(self._blocks, positions=nobody, spans=()),
                executor=NOBODY,
            )
            _Call(self._backbone, NOBODY, hidden_td).logits(list(range(count)))

    def forget(self, digest: str | None = None) -> None:
        """Drop what is kept of an adapter, or of all: a step failed."""
        self._banks.forget(digest)
        if self._graphs is not None:
            self._graphs.forget()

    def _hidden(
        self, backbone: Backbone, layout: Layout, *, executor: Executor, group: str | None
    ) -> Tensor:
        """Return (T, d), by a graph where one is kept for steps like this one."""
        attention = MixedAttention(self._blocks, positions=layout.positions, spans=layout.spans)
        ids_t, places_t = self._tensor(layout.ids), self._tensor(layout.places)
        if self._graphs is None or attention.reach is None or not _repeats(executor):
            return backbone.hidden(
                ids_t, positions=places_t, attention=attention, executor=executor
            )

        def compute(ids_t: Tensor, places_t: Tensor, seen_n: Tensor, written_n: Tensor) -> Tensor:
            moved = attention.moved(seen_n, written_n)
            return backbone.hidden(ids_t, positions=places_t, attention=moved, executor=executor)

        # A graph reads its adapters where they lay: while one is kept, so is their executor.
        key = (group, id(executor), *attention.reach)
        return self._graphs.run(key, compute, ids_t, places_t, *attention.standing)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._backbone.device)


@dataclass(frozen=True, slots=True)
class _Call:
    """One forward, from which logits are taken."""

    backbone: Backbone
    executor: Executor
    hidden_td: Tensor

    def logits(self, wanted: list[int]) -> Tensor:
        """Return (N, V) float32; a bucket of rows is computed, so that shapes repeat."""
        if not wanted:
            vocab = self.backbone.shape.vocab
            return self.hidden_td.new_empty(0, vocab, dtype=torch.float32)
        rows = wanted + [wanted[0]] * (bucket(len(wanted)) - len(wanted))
        padded = torch.tensor(rows, device=self.hidden_td.device)
        executor = self.executor.at(padded)
        logits_nv = self.backbone.logits(self.hidden_td[padded], executor=executor)
        return logits_nv[: len(wanted)].float()


def _repeats(executor: Executor) -> bool:
    """Say whether steps of one executor differ in numbers only: no rows are looked for."""
    if not isinstance(executor, Packed):
        return executor is NOBODY
    return not any(held.weights or held.functions for held in executor.bank.linears.values())


def _drawing(step: Step, layout: Layout) -> tuple[list[Choice], list[int]]:
    """Return the sequences that draw a token in this step, and the rows they draw it from."""
    decodes = [(sequence, sequence.slot or 0) for sequence in step.decodes]
    firsts = [
        (chunk.sequence, span.last - 1)
        for chunk, span in zip(step.chunks, layout.spans, strict=True)
        if chunk.ends_prompt and isinstance(chunk.sequence, Choice)
    ]
    return [row for row, _ in decodes + firsts], [place for _, place in decodes + firsts]


def _score(call: _Call, step: Step, layout: Layout) -> list[tuple[Chunk, list[Drawn]]]:
    """Score what the chunks want, a few rows' logits at a time."""
    found: dict[int, list[Drawn]] = {}
    by_row = [list(same) for _, same in groupby(_wanted(step, layout), lambda one: one.place)]
    for first in range(0, len(by_row), SCORED_AT_ONCE):
        block = by_row[first : first + SCORED_AT_ONCE]
        logits_rv = call.logits([same[0].place for same in block])
        asked = [Asked(row, w.token, w.top) for row, same in enumerate(block) for w in same]
        chunks = [wanted.chunk for same in block for wanted in same]
        for chunk, drawn in zip(chunks, score(logits_rv, asked=asked), strict=True):
            found.setdefault(chunk, []).append(drawn)
    return [(step.chunks[chunk], drawn) for chunk, drawn in found.items()]


def _wanted(step: Step, layout: Layout) -> Iterator[_Wanted]:
    for index, (chunk, span) in enumerate(zip(step.chunks, layout.spans, strict=True)):
        scored = chunk.sequence.scored
        if not scored:
            continue
        first, last = (bisect_left(scored, (row, -1)) for row in (chunk.start, chunk.stop))
        for row, token in scored[first:last]:
            yield _Wanted(span.first + row - chunk.start, token, chunk.sequence.top, index)


def _pool(step: Step, layout: Layout, hidden_td: Tensor) -> list[tuple[Chunk, Tensor]]:
    pooled = []
    for chunk, span in zip(step.chunks, layout.spans, strict=True):
        if chunk.sequence.pooling == "mean":
            pooled.append((chunk, hidden_td[span.first : span.last].float().sum(0)))
        elif chunk.sequence.pooling == "last" and chunk.ends_prompt:
            pooled.append((chunk, hidden_td[span.last - 1].float().clone()))
    return pooled
