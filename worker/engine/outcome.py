"""Of what a step computes, what is wanted: rows to draw from, scores, pooled states.

Shapes: T rows of the stream, d hidden, N rows whose logits are wanted, V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.sampler import Asked, Drawn, score
from worker.engine.scheduler import Chunk, Step

Logits = Callable[[list[int]], Tensor]
"""Computes (N, V) float32 for rows of the stream."""
States = Callable[[], Tensor]
"""Gives the hidden states (T, d); of a step that pools nothing nobody asks for them."""

SCORED_AT_ONCE = 64
"""Rows whose logits are held at once to be scored; a vocabulary is wide."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step gives to draw tokens from, and what was read."""

    logits: Callable[[], Tensor]
    """Computes those of the rows that draw, (N, V) float32."""
    likeliest: Callable[[], Sequence[Sequence[int]]]
    """Or, cheaper, finds the first of the largest of each; -1 where not all are numbers. There may
    be several steps of them, one behind the other."""
    scores: list[tuple[Chunk, list[Drawn]]]
    """Of each chunk with something to score, that, in order."""
    pooled: list[tuple[Chunk, Tensor]]
    """Of each chunk that is pooled, (d,) float64: the sum of its rows, or the prompt's last."""


class Places(NamedTuple):
    """Where in the stream the rows of a step lie, in its order."""

    decodes: list[int]
    """Of each sequence that decodes the row of its last token, then those of its draft."""
    chunks: list[tuple[int, int]]
    """First row and the one after the last."""


class _Wanted(NamedTuple):
    """A token to score behind a row of the stream."""

    place: int
    token: int
    top: int
    chunk: int


def drawing(step: Step, places: Places) -> list[int]:
    """Return the rows from which the sequences draw that draw tokens in this step."""
    chunks = zip(step.chunks, places.chunks, strict=True)
    return [*places.decodes, *(last - 1 for chunk, (_, last) in chunks if chunk.drawing)]


def reading(step: Step, places: Places) -> list[int]:
    """Return the rows whose hidden states are read, in order: to draw from, to score, to pool."""
    rows = {*drawing(step, places), *(wanted.place for wanted in _wanted(step, places))}
    for chunk, (first, last) in zip(step.chunks, places.chunks, strict=True):
        if chunk.sequence.pooling == "mean":
            rows.update(range(first, last))
        elif chunk.sequence.pooling == "last" and chunk.ends_prompt:
            rows.add(last - 1)
    return sorted(rows)


def score_chunks(logits: Logits, step: Step, places: Places) -> list[tuple[Chunk, list[Drawn]]]:
    """Score what the chunks want, a few rows' logits at a time."""
    found: dict[int, list[Drawn]] = {}
    by_row = [list(same) for _, same in groupby(_wanted(step, places), lambda one: one.place)]
    for first in range(0, len(by_row), SCORED_AT_ONCE):
        block = by_row[first : first + SCORED_AT_ONCE]
        logits_rv = logits([same[0].place for same in block])
        asked = [Asked(row, w.token, w.top) for row, same in enumerate(block) for w in same]
        chunks = [wanted.chunk for same in block for wanted in same]
        for chunk, drawn in zip(chunks, score(logits_rv, asked=asked), strict=True):
            found.setdefault(chunk, []).append(drawn)
    return [(step.chunks[chunk], drawn) for chunk, drawn in found.items()]


def _wanted(step: Step, places: Places) -> Iterator[_Wanted]:
    for index, (chunk, rows) in enumerate(zip(step.chunks, places.chunks, strict=True)):
        scored = chunk.sequence.scored
        if not scored:
            continue
        first, last = (bisect_left(scored, (row, -1)) for row in (chunk.start, chunk.stop))
        for row, token in scored[first:last]:
            yield _Wanted(rows[0] + row - chunk.start, token, chunk.sequence.top, index)


def pool_chunks(step: Step, places: Places, states: States) -> list[tuple[Chunk, Tensor]]:
    """Return what every pooled chunk adds: the sum of its rows, or the prompt's last.

    In float64, by which a sum of states is the same in float32 wherever its chunks are cut.
    """
    pooled = []
    for chunk, (first, last) in zip(step.chunks, places.chunks, strict=True):
        if chunk.sequence.pooling == "mean":
            pooled.append((chunk, states()[first:last].sum(0, dtype=torch.float64)))
        elif chunk.sequence.pooling == "last" and chunk.ends_prompt:
            pooled.append((chunk, states()[last - 1].double()))
    return pooled
