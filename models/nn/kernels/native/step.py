"""One step by the C++ kernels: rows of many sequences, each by its own adapter.

Shapes: T rows of the stream, N rows whose logits are wanted, d hidden, V vocabulary.
"""

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from models.nn.kernels.native import Library, records
from models.nn.kernels.native.adapter import StepAdapter
from models.nn.kernels.native.model import StepModel

Form = Literal["avx2", "avx512", "amx", "emulated"]


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens at consecutive positions of one slot, and the adapter that acts on them."""

    slot: int
    start: int
    ids: Sequence[int]
    adapter: StepAdapter | None = None
    decodes: bool = False
    """Whether it is one drawn token, whose attention may be summed in an order of its own."""

    @property
    def positions(self) -> range:
        """Where its tokens stand."""
        return range(self.start, self.start + len(self.ids))


class Hidden:
    """The final-normed hidden states of a step, from which more logits can be taken."""

    def __init__(
        self, step: "NativeStep", hidden_td: Tensor, owners: list[StepAdapter | None]
    ) -> None:
        self.hidden_td = hidden_td
        self.owners = owners
        self._step = step

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return (N, V) float32 of these rows, which the next call overwrites."""
        return self._step.logits(self, rows)


class NativeStep:
    """Computes steps with one model over one cache; one thread at a time may call."""

    def __init__(self, model: StepModel, library: Library, *, form: Form) -> None:
        self.model = model
        self.form = form
        self._library = library
        self._run = getattr(library.handle, f"gw_step_{form}")
        self._logits = getattr(library.handle, f"gw_logits_{form}")
        self._drawn, self._scored = _Kept(), _Kept()

    def __call__(self, runs: Sequence[Run], *, wanted: Sequence[int] = ()) -> tuple[Hidden, Tensor]:
        """Return the hidden states (T, d) bfloat16 and the logits (N, V) float32 of wanted rows.

        Rows are those of the runs, one behind the other; runs of one adapter are best adjacent.
        Keys and values are written to the cache. The logits are overwritten by the next call.
        ValueError for a token, slot or position that there is not.
        """
        for run in runs:
            self._check(run)
        record = self.model.record
        owners = list(chain.from_iterable([run.adapter] * len(run.ids) for run in runs))
        hidden_td = torch.empty(len(owners), record.hidden, dtype=torch.bfloat16)
        logits_nv = self._drawn.take(len(wanted), record.vocabulary)
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        batch = _Batch(owners)
        batch.integers("ids", chain.from_iterable(run.ids for run in runs))
        batch.integers("slots", chain.from_iterable([run.slot] * len(run.ids) for run in runs))
        batch.integers("positions", chain.from_iterable(run.positions for run in runs))
        batch.spans(runs)
        batch.want(wanted, order)
        batch.outputs(hidden_td, logits_nv)
        self._run(ctypes.byref(record), ctypes.byref(batch.record))
        return Hidden(self, hidden_td, owners), logits_nv

    def _check(self, run: Run) -> None:
        record = self.model.record
        fits = run.start >= 0 and run.positions.stop <= record.positions
        if not fits or not 0 <= run.slot < self.model.slots:
            raise ValueError(f"Slot {run.slot} has no {len(run.ids)} positions from {run.start}.")
        if not run.ids or min(run.ids) < 0 or max(run.ids) >= record.vocabulary:
            raise ValueError(f"Token ids are those below {record.vocabulary}, and at least one.")

    def logits(self, hidden: Hidden, rows: Sequence[int]) -> Tensor:
        """See `Hidden.logits`."""
        record = self.model.record
        logits_nv = self._scored.take(len(rows), record.vocabulary)
        batch = _Batch(hidden.owners)
        batch.record.rows = 0
        batch.want(rows, sorted(range(len(rows)), key=rows.__getitem__))
        batch.outputs(hidden.hidden_td, logits_nv)
        self._logits(ctypes.byref(record), ctypes.byref(batch.record))
        return logits_nv


class _Batch:
    """A `Batch` being filled, with what its addresses point to."""

    def __init__(self, owners: list[StepAdapter | None]) -> None:
        self.record = records.Batch(rows=len(owners))
        self._owners = owners
        self._held: list[Any] = []
        acting = {id(owner): owner for owner in owners if owner is not None}.values()
        self.record.most_ranks = max((owner.most_ranks for owner in acting), default=0)
        self.record.most_width = max((owner.most_width for owner in acting), default=0)
        self.record.scales_inputs = any(owner.scales_inputs for owner in acting)
        pointers = [owner.address if owner else 0 for owner in owners]
        self.integers("owners", pointers)
        self.record.groups, self.record.group_count = self._groups(owners)

    def integers(self, name: str, values: Iterable[int]) -> None:
        """Fill an array."""
        held = array("q", values)
        self._held.append(held)
        setattr(self.record, name, held.buffer_info()[0])

    def spans(self, runs: Sequence[Run]) -> None:
        """Take where the rows of every run lie."""
        spans, first = (records.Span * len(runs))(), 0
        for index, run in enumerate(runs):
            spans[index] = records.Span(run.slot, first, len(run.ids), run.start, run.decodes)
            first += len(run.ids)
        self._held.append(spans)
        self.record.spans, self.record.span_count = records.address(spans), len(runs)

    def want(self, rows: Sequence[int], order: Sequence[int]) -> None:
        """Take the rows whose logits are wanted; `order` sorts them."""
        in_order = [rows[place] for place in order]
        self.record.wanted = len(rows)
        self.integers("wanted_rows", in_order)
        self.integers("targets", order)
        owners = [self._owners[row] for row in in_order]
        self.record.wanted_groups, self.record.wanted_group_count = self._groups(owners)

    def outputs(self, hidden_td: Tensor, logits_nv: Tensor) -> None:
        """Say where results go."""
        self.record.hidden, self.record.logits = hidden_td.data_ptr(), logits_nv.data_ptr()

    def _groups(self, owners: Sequence[StepAdapter | None]) -> tuple[int, int]:
        """Return address and length of the groups of adjacent rows that have one adapter."""
        found: list[records.Group] = []
        previous: StepAdapter | None = None
        for row, owner in enumerate(owners):
            if owner is not None and owner is previous:
                found[-1].last = row + 1
            elif owner is not None:
                found.append(records.Group(owner.address, row, row + 1))
            previous = owner
        groups = (records.Group * len(found))(*found)
        self._held.append(groups)
        return records.address(groups), len(found)


class _Kept:
    """A float32 buffer that grows: fresh pages would cost more than what is written to them."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, rows: int, columns: int) -> Tensor:
        """Return (rows, columns), not cleared."""
        if len(self._buffer) < rows * columns:
            self._buffer = torch.empty(rows * columns)
        return self._buffer[: rows * columns].view(rows, columns)
