"""One step by the C++ kernels: rows of many sequences, each by its own adapter.

Shapes: T rows of the stream, N rows whose logits are wanted, d hidden, V vocabulary.
"""

import ctypes
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
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
    """The final-normed hidden states (T, d) bfloat16 of a step, from which tokens are told."""

    def __init__(self, step: "NativeStep", hidden_td: Tensor, batch: "_Batch") -> None:
        self.hidden_td = hidden_td
        self._step = step
        self._batch = batch

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return (N, V) float32 of these rows, which the next call overwrites, of any step too."""
        logits_nv = self._step.room(len(rows))
        self._batch.want(rows)
        self._batch.record.logits, self._batch.record.likeliest = logits_nv.data_ptr(), None
        self._step.tell(self._batch)
        return logits_nv

    def likeliest(self, rows: Sequence[int]) -> list[int]:
        """Return the first token of the largest logit of each row, -1 if not all are numbers."""
        tokens = (ctypes.c_int64 * len(rows))()
        self._batch.want(rows)
        self._batch.record.logits, self._batch.record.likeliest = None, records.address(tokens)
        self._step.tell(self._batch)
        return list(tokens)


class NativeStep:
    """Computes steps with one model over one cache; one thread at a time may call."""

    def __init__(self, model: StepModel, library: Library, *, form: Form) -> None:
        self.model = model
        self.form = form
        self._run = getattr(library.handle, f"gw_step_{form}")
        self._logits = getattr(library.handle, f"gw_logits_{form}")
        self._buffer = torch.empty(0)

    def __call__(self, runs: Sequence[Run]) -> Hidden:
        """Compute the rows of the runs, one behind the other; runs of one adapter best adjacent.

        Keys and values are written to the cache.
        ValueError for a token, slot or position that there is not.
        """
        for run in runs:
            self._check(run)
        owners = list(chain.from_iterable([run.adapter] * len(run.ids) for run in runs))
        hidden_td = torch.empty(len(owners), self.model.record.hidden, dtype=torch.bfloat16)
        decodes = list(chain.from_iterable([run.decodes] * len(run.ids) for run in runs))
        batch = _Batch(owners, decodes)
        batch.integers("ids", chain.from_iterable(run.ids for run in runs))
        batch.integers("slots", chain.from_iterable([run.slot] * len(run.ids) for run in runs))
        batch.integers("positions", chain.from_iterable(run.positions for run in runs))
        batch.spans(runs)
        batch.record.hidden = hidden_td.data_ptr()
        self._run(ctypes.byref(self.model.record), ctypes.byref(batch.record))
        return Hidden(self, hidden_td, batch)

    def tell(self, batch: "_Batch") -> None:
        """Compute what a batch wants of its hidden states."""
        self._logits(ctypes.byref(self.model.record), ctypes.byref(batch.record))

    def room(self, rows: int) -> Tensor:
        """Return (N, V) float32, not cleared; fresh pages would cost more than what is written."""
        columns = self.model.record.vocabulary
        if len(self._buffer) < rows * columns:
            self._buffer = torch.empty(rows * columns)
        return self._buffer[: rows * columns].view(rows, columns)

    def _check(self, run: Run) -> None:
        record = self.model.record
        fits = run.start >= 0 and run.positions.stop <= record.positions
        if not fits or not 0 <= run.slot < self.model.slots:
            raise ValueError(f"Slot {run.slot} has no {len(run.ids)} positions from {run.start}.")
        if not run.ids or min(run.ids) < 0 or max(run.ids) >= record.vocabulary:
            raise ValueError(f"Token ids are those below {record.vocabulary}, and at least one.")


class _Batch:
    """A `Batch` being filled, with what its addresses point to."""

    def __init__(self, owners: list[StepAdapter | None], decodes: list[bool]) -> None:
        self.record = records.Batch(rows=len(owners))
        self._owners = owners
        self._held: list[Any] = []
        acting = {id(owner): owner for owner in owners if owner is not None}.values()
        self.record.most_ranks = max((owner.most_ranks for owner in acting), default=0)
        self.record.most_width = max((owner.most_width for owner in acting), default=0)
        self.record.scales_inputs = any(owner.scales_inputs for owner in acting)
        self.record.replaces_weights = any(owner.replaces_weights for owner in acting)
        pointers = [owner.address if owner else 0 for owner in owners]
        self.integers("owners", pointers)
        self.record.groups, self.record.group_count = self._groups(owners, decodes)

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

    def want(self, rows: Sequence[int]) -> None:
        """Take the rows whose logits are wanted; they are computed in the stream's order."""
        order = sorted(range(len(rows)), key=rows.__getitem__)
        in_order = [rows[place] for place in order]
        self.record.wanted = len(rows)
        self.integers("wanted_rows", in_order)
        self.integers("targets", order)
        owners = [self._owners[row] for row in in_order]
        self.record.wanted_groups, self.record.wanted_group_count = self._groups(
            owners, [True] * len(owners)
        )

    def _groups(
        self, owners: Sequence[StepAdapter | None], decodes: Sequence[bool]
    ) -> tuple[int, int]:
        """Return address and length of the groups of adjacent rows alike that have an adapter."""
        found, first = [], 0
        for (owner, decoding), rows in groupby(zip(owners, decodes, strict=True)):
            last = first + sum(1 for _ in rows)
            if owner is not None:
                found.append(records.Group(owner.address, first, last, decoding))
            first = last
        groups = (records.Group * len(found))(*found)
        self._held.append(groups)
        return records.address(groups), len(found)
