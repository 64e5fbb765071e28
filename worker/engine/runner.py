"""One step as one forward: tokens of all kinds laid out flat, and of the output what is wanted.

Shapes: T rows of the stream, d hidden, N rows whose logits are wanted, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.executors import NOBODY, Executor, Packed
from models.nn.kernels.native.step import ONE_STEP, Until
from models.nn.terms import Terms
from worker.engine.banks import Banks
from worker.engine.blocks import Blocks, MixedAttention
from worker.engine.graphs import Graphs
from worker.engine.layout import Layout, bucket, lay_out
from worker.engine.native import NativeRunner
from worker.engine.outcome import Outcome, Places, drawing, pool_chunks, score_chunks
from worker.engine.resident import NOT_LAID_OUT, LaidOut
from worker.engine.sampler import likeliest
from worker.engine.scheduler import Step


class Runner:
    """Computes steps; keeps the bank of each group's adapters from one step to the next.

    Steps are computed by the C++ step if there is `native` and it can do all that is in them.
    """

    def __init__(
        self,
        backbone: Backbone,
        blocks: Blocks,
        *,
        native: NativeRunner | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """Take the base and its cache, and where decode steps are recorded, if they can be."""
        self._backbone = backbone
        self._blocks = blocks
        self._native = native
        self._banks = Banks()
        self._graphs = graphs

    def run(
        self,
        step: Step,
        *,
        terms: Mapping[str, Terms],
        greedy: bool = False,
        until: Until = ONE_STEP,
    ) -> Outcome:
        """Compute a step; `terms` holds, by digest, at least the adapters of its sequences.

        If it is `greedy`, nothing but the likeliest tokens will be wanted to draw from, and the
        steps that follow may be computed along, `until` something else is to be done.
        """
        if self._native is not None:
            outcome = self._native.run(step, terms=terms, greedy=greedy, until=until)
            if outcome is not None:
                return outcome
        if step.drafts:
            raise ValueError("Drafts are for steps of the C++ kernels.")
        layout = lay_out(step, rows=self._blocks.rows)
        executor = self._banks.executor(
            step.group, layout.owners, terms=terms, device=self._backbone.device
        )
        backbone = self._backbone
        if step.group is not None:
            backbone = backbone.using(terms[step.group].weights)
        hidden_td = self._hidden(backbone, layout, executor=executor, group=step.group)
        call = _Call(backbone, executor, hidden_td)
        places = Places(
            [sequence.slot or 0 for sequence in step.decodes],
            [(span.first, span.last) for span in layout.spans],
        )
        wanted = drawing(step, places)
        return Outcome(
            partial(call.logits, wanted),
            lambda: [call.likeliest(wanted)],
            score_chunks(call.logits, step, places),
            pool_chunks(step, places, lambda: hidden_td),
        )

    def goes_by_slots(self, step: Step) -> bool:
        """Say whether all slots up to the last decoding one are computed, holes included.

        That is how torch does it; the C++ step takes rows from wherever they lie.
        """
        return self._native is None or not self._native.may_compute(step)

    def rest(self) -> None:
        """Let go of what is kept of rows: there are none at the moment."""
        if self._native is not None:
            self._native.rest()

    def spare(self, step: Step, *, terms: Mapping[str, Terms]) -> int:
        """Return how many rows more a step could have in about the same time."""
        return 0 if self._native is None else self._native.spare(step, terms=terms)

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

    def prepare(self, digest: str, terms: Terms) -> LaidOut:
        """Lay an adapter out for its first step; any thread may, beside the steps of others."""
        if self._native is None:
            return NOT_LAID_OUT
        return self._native.lay_out(digest, terms)

    def forget(self, digest: str | None = None) -> None:
        """Drop what is kept of an adapter, or of all: a step failed."""
        self._banks.forget(digest)
        if self._native is not None:
            self._native.forget(digest)
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

    def likeliest(self, wanted: list[int]) -> list[int]:
        """Return the first of the largest of each, -1 where not all are numbers."""
        return likeliest(self.logits(wanted))


def _repeats(executor: Executor) -> bool:
    """Say whether steps of one executor differ in numbers only: no rows are looked for."""
    if not isinstance(executor, Packed):
        return executor is NOBODY
    return not any(held.weights or held.functions for held in executor.bank.linears.values())
