"""One step by the C++ kernels: rows of many sequences, each by its own adapter.

Shapes: T rows of the stream, N rows whose logits are wanted, d hidden, V vocabulary.
"""

import ctypes
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from models.nn.kernels.native import NO_MEMORY, Library, records
from models.nn.kernels.native.batch import Batch, Run
from models.nn.kernels.native.model import StepModel

Form = Literal["avx2", "avx512", "amx", "emulated"]
Told = tuple[Sequence[int], Sequence[int]]
"""Rows, and the likeliest token of each."""


@dataclass(frozen=True, slots=True)
class Until:
    """How long steps follow each other by themselves, each with what the one before it drew."""

    most: int = 1
    """Steps."""
    seconds: float = math.inf
    """When they are over, no further step begins."""
    ends: "array[int]" = field(default_factory=lambda: array("q"))
    """Tokens behind which no row goes on, nor any beside it."""
    called: ctypes.c_int32 = field(default_factory=ctypes.c_int32)
    """Not 0 once another thread wants them to end; they do after the step at work."""


ONE_STEP = Until()


class Hidden:
    """The final-normed hidden states of a step, from which tokens are told.

    They last until the next step, or until their own rows go on.
    """

    def __init__(self, step: "NativeStep", states_td: Tensor, batch: Batch, told: Told) -> None:
        self._step = step
        self._states_td = states_td
        self._batch = batch
        self._told = told

    def states(self) -> Tensor:
        """Return the states (T, d) bfloat16; those of rows that are not read are anything."""
        return self._states_td[: len(self._batch.ids)]

    def go_on(
        self, ids: Sequence[int], starts: Sequence[int], *, until: Until = ONE_STEP
    ) -> list[Sequence[int]]:
        """Compute the step's runs again, all of one token, with these tokens at these positions.

        Likeliest tokens that were named with the step are found again; `until` says how long steps
        go on with them, more than once only if all rows were named. Returns those of every step, or
        nothing if none were named. ValueError as of a step.
        """
        rows, _ = self._told
        self._batch.go_on(ids, starts)
        if not rows:
            self._step.compute(self._batch, likeliest=())
            return []
        found = self._step.go_on(self._batch, likeliest=rows, until=until)
        self._told = rows, found[-1]
        return found

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return (N, V) float32 of these rows, which the next call overwrites, of any step too."""
        logits_nv = self._step.room(len(rows))
        self._batch.want_logits(rows, address=logits_nv.data_ptr())
        self._step.tell(self._batch)
        return logits_nv

    def likeliest(self, rows: Sequence[int]) -> list[int]:
        """Return the first token of the largest logit of each row, -1 if not all are numbers."""
        known, found = self._told
        if known != rows:
            found = self._batch.want_likeliest(rows)
            self._step.tell(self._batch)
        return list(found)


class NativeStep:
    """Computes steps with one model over one cache; one thread at a time may call."""

    def __init__(self, model: StepModel, library: Library, *, form: Form) -> None:
        if model.record.head.rounded and form != "avx2":
            raise ValueError("Weights in block floating point are for the form by AVX2.")
        self.model = model
        self.form = form
        self._check_memory = library.check_memory
        self._run = getattr(library.handle, f"gw_step_{form}")
        self._logits = getattr(library.handle, f"gw_logits_{form}")
        self._go_on = library.handle.gw_go_on
        self._go_on.restype = ctypes.c_int64
        self._buffer = torch.empty(0)
        self._states_td = torch.empty(0)
        self._rows, self._address = 0, 0

    def __call__(
        self,
        runs: Sequence[Run],
        *,
        read: Sequence[int] | None = None,
        likeliest: Sequence[int] = (),
    ) -> Hidden:
        """Compute the rows of the runs, one behind the other; runs of one adapter best adjacent.

        Keys and values are written to the cache. `read` names, in order, the rows whose hidden
        states are computed, all unless told. Rows whose likeliest tokens are wanted, and nothing
        else, are best named at once.
        ValueError for a token, slot or position that there is not, MemoryError without memory.
        """
        for run in runs:
            self._check(run)
        batch = Batch(runs, read=read)
        batch.record.hidden = self._room_for(len(batch.ids))
        found = self.compute(batch, likeliest=likeliest)
        return Hidden(self, self._states_td, batch, (likeliest, found))

    def compute(self, batch: Batch, *, likeliest: Sequence[int]) -> Sequence[int]:
        """Compute the rows of a batch and the likeliest tokens of some of them."""
        self._check_rows(batch)
        found = batch.want_likeliest(likeliest) if likeliest else ()
        self._run(ctypes.byref(self.model.record), ctypes.byref(batch.record))
        self._check_memory()
        return found

    def go_on(self, batch: Batch, *, likeliest: Sequence[int], until: Until) -> list[Sequence[int]]:
        """Compute the rows of a batch, one of each run, and their successors: see `Hidden.go_on`.

        Returns the likeliest tokens of some rows, which must be all where steps follow each other.
        """
        if until.most < 1 or (until.most > 1 and len(likeliest) < len(batch.ids)):
            raise ValueError("Steps follow each other where all rows draw.")
        self._check_rows(batch, further=until.most - 1)
        batch.want_likeliest(likeliest)
        drawn = array("q", bytes(8 * until.most * len(likeliest)))
        stretch = records.Stretch(
            most=until.most,
            seconds=until.seconds,
            ids=batch.record.ids,
            positions=batch.record.positions,
            spans=batch.record.spans,
            drawn=drawn.buffer_info()[0],
            ends=until.ends.buffer_info()[0],
            end_count=len(until.ends),
            called=ctypes.addressof(until.called),
        )
        step = ctypes.cast(self._run, ctypes.c_void_p)
        model, record = ctypes.byref(self.model.record), ctypes.byref(batch.record)
        steps = self._go_on(step, model, record, ctypes.byref(stretch))
        if not steps:
            raise MemoryError(NO_MEMORY)
        count = len(likeliest)
        return [drawn[n * count : (n + 1) * count] for n in range(steps)]

    def tell(self, batch: Batch) -> None:
        """Compute what a batch wants of its hidden states."""
        self._logits(ctypes.byref(self.model.record), ctypes.byref(batch.record))
        self._check_memory()

    def room(self, rows: int) -> Tensor:
        """Return (N, V) float32, not cleared; fresh pages would cost more than what is written."""
        columns = self.model.record.vocabulary
        if len(self._buffer) < rows * columns:
            self._buffer = torch.empty(rows * columns)
        return self._buffer[: rows * columns].view(rows, columns)

    def _room_for(self, rows: int) -> int:
        """Return the address of room for the states of so many rows.

        Torch is called only to make it larger: its calls let other threads have the interpreter
        just before a step begins.
        """
        if self._rows < rows:
            self._states_td = torch.empty(rows, self.model.record.hidden, dtype=torch.bfloat16)
            self._rows, self._address = rows, self._states_td.data_ptr()
        return self._address

    def _check_rows(self, batch: Batch, *, further: int = 0) -> None:
        """Raise ValueError for tokens and positions that there are not, so much further on too."""
        vocabulary, positions = self.model.record.vocabulary, self.model.record.positions
        if min(batch.ids) < 0 or max(batch.ids) >= vocabulary:
            raise ValueError(f"Token ids are those below {vocabulary}.")
        if min(batch.positions) < 0 or max(batch.positions) + further >= positions:
            raise ValueError(f"Slots have {positions} positions.")

    def _check(self, run: Run) -> None:
        if not 0 <= run.slot < self.model.slots:
            raise ValueError(f"Slot {run.slot} is none of {self.model.slots}.")
        if not run.ids:
            raise ValueError("A run has at least one token.")
        if run.decodes and len(run.ids) > 1:
            raise ValueError("A run that decodes is one token.")
