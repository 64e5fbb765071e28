"""Sequences that begin alike, with each shared row once: a tree of runs of rows.

A run goes on from its parent, an earlier run, and sees all rows of it and of what it goes on from.
Adapters without dropout give the same states to the same rows, so what several sequences begin
with (a system prompt, a question's wording) is computed once for all, with the sum of their
gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NONE = -1
"""The parent of a run that begins a sequence."""
LEAST_SAVED = 8
"""Rows: below that, a run of its own costs as much as it saves."""


def lineage(parents: Sequence[int], run: int) -> list[int]:
    """Return a run and all that it goes on from, the first one first."""
    line = []
    while run != NONE:
        line.append(run)
        run = parents[run]
    return line[::-1]


@dataclass(frozen=True)
class Tree:
    """Runs end to end, and where in them the rows of the sequences are."""

    ids_t: Tensor
    """int64: the tokens of all runs."""
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    rows_t: Tensor
    """int64, for each row of the sequences end to end, as they were given: its row in the runs."""


def share_starts(sequences: Sequence[NDArray[np.int64]], *, device: str) -> Tree | None:
    """Return sequences of tokens, none of them empty, as a tree; None if too little is shared."""
    growth = _Growth(sequences)
    order = sorted(range(len(sequences)), key=lambda one: sequences[one].astype(">i8").tobytes())
    growth.grow(order, depth=0, parent=NONE, above_t=np.arange(0))
    ids_t, rows_t = (np.concatenate(pieces) for pieces in (growth.runs, growth.rows))
    if len(ids_t) == len(rows_t):
        return None
    return Tree(
        torch.from_numpy(ids_t).to(device),
        tuple(len(run) for run in growth.runs),
        tuple(growth.parents),
        torch.from_numpy(rows_t).to(device),
    )


class _Growth:
    """A tree on the way."""

    def __init__(self, sequences: Sequence[NDArray[np.int64]]) -> None:
        self.runs: list[NDArray[np.int64]] = []
        self.parents: list[int] = []
        self.rows: list[NDArray[np.int64]] = [np.arange(0)] * len(sequences)
        self._sequences = sequences
        self._length = 0

    def grow(
        self, group: Sequence[int], *, depth: int, parent: int, above_t: NDArray[np.int64]
    ) -> None:
        """Lay down a group in the order of its tokens, from where `depth` rows of it lie already.

        They are the rows `above_t` of the runs, of which `parent` is the last.
        """
        first = self._sequences[group[0]]
        common = _agreement(first, self._sequences[group[-1]])
        saved = (common - depth) * (len(group) - 1)
        if len(group) == 1 or saved >= LEAST_SAVED:
            if common > depth:
                self.runs.append(first[depth:common])
                self.parents.append(parent)
                parent = len(self.runs) - 1
                self._length += common - depth
                above_t = np.append(above_t, np.arange(self._length + depth - common, self._length))
            depth = common
        for branch in self._branches(group, common):
            if len(group) == 1 or depth == len(self._sequences[branch[0]]):
                self.rows[branch[0]] = above_t
            else:
                self.grow(branch, depth=depth, parent=parent, above_t=above_t)

    def _branches(self, group: Sequence[int], common: int) -> Iterator[list[int]]:
        """Split a group by what comes next; sequences that end here are alone."""

        def what_follows(one: int) -> bytes:
            return self._sequences[one][common : common + 1].tobytes()

        for goes_on, members in groupby(group, what_follows):
            branch = list(members)
            yield from [branch] if goes_on else ([one] for one in branch)


def _agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Return how many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    differs_t = one[:length] != other[:length]
    return int(differs_t.argmax()) if differs_t.any() else length
