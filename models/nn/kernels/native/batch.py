"""The rows of a step as C++ reads them."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from models.nn.kernels.native import records
from models.nn.kernels.native.adapter import StepAdapter

_SPAN_FIELDS, _SPAN_START = 5, 3
"""Integers of a `Span`, and which of them is the position of its first row."""


class Run(NamedTuple):
    """Tokens at consecutive positions of one slot, and the adapter that acts on them."""

    slot: int
    start: int
    ids: Sequence[int]
    adapter: StepAdapter | None = None
    decodes: bool = False
    """Whether it is one drawn or drafted token, whose attention may be summed in its own order."""


class Batch:
    """A `Batch` of the records being filled, with what its addresses point to."""

    def __init__(self, runs: Sequence[Run], *, read: Sequence[int] | None = None) -> None:
        """Lay the rows of runs out, one behind the other; the states of all are read, or of some.

        `read` names these in the stream's order.
        """
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        spans: list[int] = []
        self._owners: list[StepAdapter | None] = []
        for slot, start, ids, adapter, decodes in runs:
            count = len(ids)
            spans += (slot, len(tokens), count, start, decodes)  # the fields of `Span`
            tokens += ids
            slots += [slot] * count
            positions += range(start, start + count)
            self._owners += [adapter] * count
        self.record = record = records.Batch(rows=len(tokens), span_count=len(runs))
        self._held: dict[str, array[int]] = {}
        self.ids = self._hold("ids", tokens)
        self.positions = self._hold("positions", positions)
        self._spans = self._hold("spans", spans)
        self._hold("slots", slots)
        self._hold_addresses("owners", self._owners)
        self._hold_groups("groups", "group_count", ((run.adapter, len(run.ids)) for run in runs))
        self._read(range(record.rows) if read is None else read)
        acting = {run.adapter for run in runs if run.adapter is not None}
        record.most_ranks = max((owner.most_ranks for owner in acting), default=0)
        record.most_width = max((owner.most_width for owner in acting), default=0)
        record.scales_inputs = any(owner.scales_inputs for owner in acting)
        record.replaces_weights = any(owner.replaces_weights for owner in acting)

    def go_on(self, ids: Sequence[int], starts: Sequence[int]) -> None:
        """Take other tokens at other positions, one for each run; nothing is wanted then.

        ValueError if runs are of several tokens.
        """
        if not len(self.ids) == self.record.span_count == len(ids) == len(starts):
            raise ValueError("Rows that go on are one token for each run.")
        self.ids[:] = array("q", ids)
        self.positions[:] = self._spans[_SPAN_START::_SPAN_FIELDS] = array("q", starts)
        self.record.wanted = 0

    def want_logits(self, rows: Sequence[int], *, address: int) -> None:
        """Want (N, V) float32 of some rows, written where there is room for them."""
        self._want(rows)
        self.record.logits, self.record.likeliest = address, None

    def want_likeliest(self, rows: Sequence[int]) -> "array[int]":
        """Want the likeliest token of some rows; they are in what is returned then."""
        self._want(rows)
        self.record.logits = None
        return self._hold("likeliest", [0] * len(rows))

    def _read(self, rows: Sequence[int]) -> None:
        """Take the rows whose hidden states are read."""
        if any(later <= row for row, later in pairwise([-1, *rows, len(self.ids)])):
            raise ValueError("Rows to be read are those of the stream, in its order.")
        owners = [self._owners[row] for row in rows]
        self.record.read, self._known = len(rows), frozenset(rows)
        self._hold("read_rows", rows)
        self._hold_addresses("read_owners", owners)
        self._hold_groups("read_groups", "read_group_count", ((owner, 1) for owner in owners))

    def _want(self, rows: Sequence[int]) -> None:
        """Take the rows whose logits are wanted; they are computed in the stream's order."""
        if not self._known.issuperset(rows):
            raise ValueError("Of rows whose states are not read there are no logits.")
        order = sorted(range(len(rows)), key=rows.__getitem__)
        in_order = [rows[place] for place in order]
        self.record.wanted = len(rows)
        self._hold("wanted_rows", in_order)
        self._hold("targets", order)
        self._hold_groups(
            "wanted_groups", "wanted_group_count", ((self._owners[row], 1) for row in in_order)
        )

    def _hold(self, name: str, values: Iterable[int]) -> "array[int]":
        """Keep integers for a field of the record to point to, instead of those before them."""
        held = self._held[name] = array("q", values)
        setattr(self.record, name, held.buffer_info()[0])
        return held

    def _hold_addresses(self, name: str, owners: Iterable[StepAdapter | None]) -> None:
        self._hold(name, [owner.address if owner else 0 for owner in owners])

    def _hold_groups(
        self, name: str, count: str, parts: Iterable[tuple[StepAdapter | None, int]]
    ) -> None:
        """Keep the groups of adjacent rows that one adapter acts on, and how many there are."""
        found: list[int] = []  # three integers each, the fields of `Group`
        first, before = 0, None
        for adapter, rows in parts:
            if adapter is not None and adapter is before:
                found[-1] += rows
            elif adapter is not None:
                found += (adapter.address, first, first + rows)
            first, before = first + rows, adapter
        self._hold(name, found)
        setattr(self.record, count, len(found) // 3)
