"""The rows of a step as C++ reads them."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from models.nn.kernels.native import records
from models.nn.kernels.native.adapter import StepAdapter


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
        self.ids: list[int] = []
        self._owners: list[StepAdapter | None] = []
        self._held: list[Any] = []
        slots: list[int] = []
        positions: list[int] = []
        spans: list[int] = []  # five integers each, the fields of `Span`
        for slot, start, ids, adapter, decodes in runs:
            count = len(ids)
            spans += (slot, len(self.ids), count, start, decodes)
            self.ids += ids
            self._owners += [adapter] * count
            slots += [slot] * count
            positions += range(start, start + count)
        self.record = record = records.Batch(rows=len(self.ids), span_count=len(runs))
        record.ids, record.slots = self._integers(self.ids), self._integers(slots)
        record.positions, record.spans = self._integers(positions), self._integers(spans)
        record.owners = self._addresses(self._owners)
        record.groups, record.group_count = self._groups(
            (run.adapter, len(run.ids)) for run in runs
        )
        self._read(range(record.rows) if read is None else read)
        acting = {run.adapter for run in runs if run.adapter is not None}
        record.most_ranks = max((owner.most_ranks for owner in acting), default=0)
        record.most_width = max((owner.most_width for owner in acting), default=0)
        record.scales_inputs = any(owner.scales_inputs for owner in acting)
        record.replaces_weights = any(owner.replaces_weights for owner in acting)

    def want_logits(self, rows: Sequence[int], *, address: int) -> None:
        """Want (N, V) float32 of some rows, written where there is room for them."""
        self._want(rows)
        self.record.logits, self.record.likeliest = address, None

    def want_likeliest(self, rows: Sequence[int]) -> "array[int]":
        """Want the likeliest token of some rows; they are in what is returned then."""
        self._want(rows)
        tokens = array("q", bytes(8 * len(rows)))
        self._held.append(tokens)
        self.record.logits, self.record.likeliest = None, tokens.buffer_info()[0]
        return tokens

    def _read(self, rows: Sequence[int]) -> None:
        """Take the rows whose hidden states are read."""
        if any(later <= row for row, later in pairwise([-1, *rows, len(self.ids)])):
            raise ValueError("Rows to be read are those of the stream, in its order.")
        record, self._known = self.record, frozenset(rows)
        owners = [self._owners[row] for row in rows]
        record.read, record.read_rows = len(rows), self._integers(rows)
        record.read_owners = self._addresses(owners)
        record.read_groups, record.read_group_count = self._groups((owner, 1) for owner in owners)

    def _want(self, rows: Sequence[int]) -> None:
        """Take the rows whose logits are wanted; they are computed in the stream's order."""
        if not self._known.issuperset(rows):
            raise ValueError("Of rows whose states are not read there are no logits.")
        order = sorted(range(len(rows)), key=rows.__getitem__)
        in_order = [rows[place] for place in order]
        record = self.record
        record.wanted = len(rows)
        record.wanted_rows, record.targets = self._integers(in_order), self._integers(order)
        record.wanted_groups, record.wanted_group_count = self._groups(
            (self._owners[row], 1) for row in in_order
        )

    def _integers(self, values: Iterable[int]) -> int:
        """Return the address of an array."""
        held = array("q", values)
        self._held.append(held)
        return held.buffer_info()[0]

    def _addresses(self, owners: Iterable[StepAdapter | None]) -> int:
        return self._integers(owner.address if owner else 0 for owner in owners)

    def _groups(self, parts: Iterable[tuple[StepAdapter | None, int]]) -> tuple[int, int]:
        """Return address and length of the groups of adjacent rows that one adapter acts on."""
        found: list[int] = []  # three integers each, the fields of `Group`
        first, before = 0, None
        for adapter, rows in parts:
            if adapter is not None and adapter is before:
                found[-1] += rows
            elif adapter is not None:
                found += (adapter.address, first, first + rows)
            first, before = first + rows, adapter
        return self._integers(found), len(found) // 3
