"""One step as one forward: tokens of all kinds laid out flat, and logits where they are wanted.

Shapes: T rows of the stream, d hidden, N rows whose logits are wanted, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.executors import NOBODY, Bank, Executor, Packed
from models.nn.terms import Terms
from worker.engine.blocks import Blocks, MixedAttention, Span
from worker.engine.scheduler import Chunk, Step
from worker.engine.sequence import Sequence


def bucket(count: int) -> int:
    """Round a number of rows up to one of few, because a CPU prepares anew for every new shape."""
    if count <= 8:
        return 1 << (count - 1).bit_length() if count else 0
    step = 8 if count <= 32 else 16
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class Outcome:
    """Logits of a step, float32: of every row that draws a token, and of echoed prompts."""

    rows: list[Sequence]
    logits_nv: Tensor
    echoes: list[tuple[Chunk, Tensor]]
    """Chunks whose prompt is echoed, with the logits (t, V) that follow each of their tokens."""


@dataclass(slots=True)
class _Layout:
    """The stream of one step, as lists."""

    ids: list[int]
    places: list[int]
    owners: list[str | None]
    positions: list[int | None]
    spans: list[Span]

    def add(self, token: int, place: int, owner: str | None) -> None:
        self.ids.append(token)
        self.places.append(place)
        self.owners.append(owner)


class Runner:
    """Computes steps; keeps the bank of adapters from one step to the next."""

    def __init__(self, backbone: Backbone, blocks: Blocks) -> None:
        self._backbone = backbone
        self._blocks = blocks
        self._bank: tuple[tuple[str, ...], Bank] | None = None
        self._packed: tuple[tuple[str | None, ...], Packed] | None = None

    def run(self, step: Step, *, terms: Mapping[str, Terms]) -> Outcome:
        """Compute a step; `terms` holds, by digest, at least the adapters of its sequences."""
        layout = _lay_out(step, rows=self._blocks.rows)
        executor = self._executor(layout.owners, terms)
        hidden_td = self._backbone.hidden(
            self._tensor(layout.ids),
            positions=self._tensor(layout.places),
            attention=MixedAttention(self._blocks, positions=layout.positions, spans=layout.spans),
            executor=executor,
        )
        rows, wanted = _drawing(step, layout)
        echoed = [
            (chunk, span)
            for chunk, span in zip(step.chunks, layout.spans, strict=True)
            if chunk.sequence.echo is not None
        ]
        logits_nv = self._logits(hidden_td, wanted, executor)
        echoes = [
            (chunk, self._logits(hidden_td, list(range(span.first, span.last)), executor))
            for chunk, span in echoed
        ]
        return Outcome(rows, logits_nv, echoes)

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
            self._logits(hidden_td, list(range(count)), NOBODY)

    def forget(self) -> None:
        """Drop the bank: an adapter was dropped, or a step failed."""
        self._bank = self._packed = None

    def _logits(self, hidden_td: Tensor, wanted: list[int], executor: Executor) -> Tensor:
        """Return (N, V) float32; a bucket of rows is computed, so that shapes repeat."""
        if not wanted:
            return hidden_td.new_empty(0, self._backbone.shape.vocab, dtype=torch.float32)
        padded = self._tensor(wanted + [wanted[0]] * (bucket(len(wanted)) - len(wanted)))
        logits_nv = self._backbone.logits(hidden_td[padded], executor=executor.at(padded))
        return logits_nv[: len(wanted)].float()

    def _executor(self, owners: list[str | None], terms: Mapping[str, Terms]) -> Executor:
        needed = {owner for owner in owners if owner is not None}
        if not needed:
            return NOBODY
        digests, bank = self._bank_for(needed, terms)
        key = tuple(owners)
        if self._packed is None or self._packed[0] != key:
            slots = {digest: slot for slot, digest in enumerate(digests, start=1)}
            slots_t = self._tensor([slots[owner] if owner else 0 for owner in owners])
            self._packed = key, Packed(bank, slots_t)
        return self._packed[1]

    def _bank_for(
        self, needed: set[str], terms: Mapping[str, Terms]
    ) -> tuple[tuple[str, ...], Bank]:
        """Return a bank that has the needed adapters and not many more, as a rule the last one."""
        if self._bank is not None:
            held = self._bank[0]
            if needed.issubset(held) and len(held) <= 2 * len(needed):
                return self._bank
        digests = tuple(sorted(needed))
        self._bank = digests, Bank.of([terms[digest] for digest in digests])
        self._packed = None
        return self._bank

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._backbone.device)


def _lay_out(step: Step, *, rows: int) -> _Layout:
    """Decode rows at their slots, holes between them; then chunks; then padding."""
    layout = _Layout([], [], [], [], [])
    by_slot = {sequence.slot: sequence for sequence in step.decodes}
    highest = max((sequence.slot or 0 for sequence in step.decodes), default=-1)
    for slot in range(min(bucket(highest + 1), rows)):
        sequence = by_slot.get(slot)
        if sequence is None:
            layout.add(0, 0, None)
            layout.positions.append(None)
        else:
            layout.add(sequence.last_token, sequence.computed, _owner(sequence))
            layout.positions.append(sequence.computed)
    for chunk in step.chunks:
        first = len(layout.ids)
        for place in range(chunk.start, chunk.stop):
            layout.add(chunk.sequence.prompt[place], place, _owner(chunk.sequence))
        slot = chunk.sequence.slot or 0
        layout.spans.append(Span(slot, first, len(layout.ids), chunk.start, chunk.stop))
    for _ in range(bucket(len(layout.ids)) - len(layout.ids) if step.chunks else 0):
        layout.add(0, 0, None)
    return layout


def _drawing(step: Step, layout: _Layout) -> tuple[list[Sequence], list[int]]:
    """Return the sequences that draw a token in this step, and the rows they draw it from."""
    decodes = [(sequence, sequence.slot or 0) for sequence in step.decodes]
    firsts = [
        (chunk.sequence, span.last - 1)
        for chunk, span in zip(step.chunks, layout.spans, strict=True)
        if chunk.ends_prompt
    ]
    return [row for row, _ in decodes + firsts], [place for _, place in decodes + firsts]


def _owner(sequence: Sequence) -> str | None:
    return sequence.adapter.digest if sequence.adapter else None
