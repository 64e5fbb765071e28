"""Who runs next: admission, slots and the prompt tokens of a step. It touches no tensor."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from worker.engine.sequence import Choice, Sequence

BESIDE_OTHERS = 64
"""Prompt tokens of a step that not all can share, while others wait to draw their next token: on a
CPU, by torch's operators, a whole step of them may take as long as thirty of theirs."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, stop) of a sequence, computed in one step."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def ends_prompt(self) -> bool:
        """Whether nothing of the prompt is left after this chunk."""
        return self.stop == len(self.sequence.prompt)

    @property
    def drawing(self) -> Choice | None:
        """The sequence, if it draws its first token after this chunk."""
        if self.ends_prompt and isinstance(self.sequence, Choice):
            return self.sequence
        return None


class Draft(NamedTuple):
    """Tokens that a sequence might draw next."""

    tokens: list[int]
    predicted: bool = False
    """Whether its caller predicted them; else the sequence itself once went on like that."""


NO_DRAFT = Draft([])


@dataclass(frozen=True, slots=True)
class Step:
    """One forward: a token of each decoding sequence and its draft, and chunks of prompts."""

    decodes: tuple[Choice, ...]
    chunks: tuple[Chunk, ...]
    group: str | None = None
    """The adapter, by digest, that has this step to itself; None for all that share theirs."""
    eager: bool = False
    """Whether it is of what the C++ step does not compute."""
    drafts: Mapping[Choice, Draft] = field(default_factory=dict)
    """Of some of those that decode; each such token is one more row to draw from."""

    @property
    def rows(self) -> int:
        """How many tokens are computed."""
        drafted = sum(len(draft.tokens) for draft in self.drafts.values())
        return len(self.decodes) + drafted + sum(part.stop - part.start for part in self.chunks)

    @property
    def sequences(self) -> Iterator[Sequence]:
        """Everybody who has tokens in this step."""
        yield from self.decodes
        yield from (chunk.sequence for chunk in self.chunks)

    def draft(self, choice: Choice) -> Draft:
        """Return the draft of a sequence that draws, which may be empty."""
        return self.drafts.get(choice, NO_DRAFT)

    def drawing(self) -> list[Choice]:
        """Return the sequences that draw a token, in order."""
        return [*self.decodes, *(one for chunk in self.chunks if (one := chunk.drawing))]

    def alone(self) -> Iterator["Step"]:
        """Yield the same work but for drafts, each sequence in a step of its own."""
        kind = self.group, self.eager
        yield from (Step((sequence,), (), *kind) for sequence in self.decodes)
        yield from (Step((), (chunk,), *kind) for chunk in self.chunks)


class _Turn(NamedTuple):
    """Who may be in one step."""

    group: str | None
    eager: bool


SHARED = _Turn(group=None, eager=False)
"""The turn of all whose adapters share a batch."""


class Scheduler:
    """Continuous batching over a fixed number of slots.

    Admission takes turns: first come first served, then the first of whichever tenant has the
    fewest rows running, and of whichever of its adapters. So the head of the queue moves at every
    second admission whatever others send, and a flood of one tenant's, or for one adapter, delays
    the others by one turn, not by the flood.

    A step is for one group of sequences: all whose adapters share a batch, or those of one adapter
    that does not. What the C++ step does not compute, such as nodes of trees, are steps of their
    own: a row beside them would be computed in another way than elsewhere. All these take turns,
    which are remembered of those that come and go, as a row does between its prompt and its nodes.
    """

    def __init__(self, *, rows: int, prefill_tokens: int, beside_others: int | None = None) -> None:
        """Have up to `prefill_tokens` in a step, up to `beside_others` in one that others wait for.

        That is what not all can share; None is no less than elsewhere.
        """
        self.rows = rows
        self.prefill_tokens = prefill_tokens
        self._beside_others = min(beside_others or prefill_tokens, prefill_tokens)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._free = list(range(rows))
        self._oldest_first = True
        self._turns: dict[_Turn, int] = {}
        """When each had its last step, as long as that matters."""
        self._steps = 0
        self._standing: tuple[_Turn, Step] | None = None
        """A step of all rows, where all decode: the next one too, until one comes or goes."""

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting.append(sequence)

    def admit(self, is_ready: Callable[[Sequence], bool]) -> list[Sequence]:
        """Give slots, lowest first, to waiting sequences that `is_ready` lets through."""
        admitted = []
        ready = [sequence for sequence in self.waiting if is_ready(sequence)] if self._free else []
        while self._free and ready:
            sequence = ready[0] if self._oldest_first else self._least_served(ready)
            self._oldest_first = not self._oldest_first
            ready.remove(sequence)
            self.waiting.remove(sequence)
            sequence.slot = heapq.heappop(self._free)
            self.running.append(sequence)
            self._standing = None
            admitted.append(sequence)
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and free its slot."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._standing = None
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = None

    def next_step(self) -> Step | None:
        """Return a step of those whose turn it is, or None if nothing runs.

        It has a token of every decoding row and up to `prefill_tokens` of prompts; fewer, if not
        all can share it, while others decode.
        """
        if not self.running:
            return None
        if self._standing is not None:
            turn, step = self._standing
            self._choose([turn])
            return step
        turn = self._choose(map(_turn_of, self.running))
        members = [sequence for sequence in self.running if _turn_of(sequence) == turn]
        decodes = [s for s in members if isinstance(s, Choice) and not s.prefilling]
        prefilling = [sequence for sequence in members if sequence.prefilling]
        chunks = self._chunks(prefilling, budget=self._budget(turn))
        step = Step(tuple(decodes), tuple(chunks), turn.group, turn.eager)
        if len(decodes) == len(self.running):
            self._standing = turn, step
        return step

    def compact(self, *, rows: int) -> Iterator[tuple[Sequence, int]]:
        """Move running sequences from the highest slots into holes, until all lie below `rows`.

        Yields each with the slot it left; decoding is done over the first slots, holes included.
        """
        for sequence in sorted(self.running, key=_slot_of, reverse=True):
            source = _slot_of(sequence)
            if source < rows or not self._free or self._free[0] > source:
                return
            sequence.slot = heapq.heapreplace(self._free, source)
            yield sequence, source

    def _choose(self, present: Iterable[_Turn]) -> _Turn:
        """Choose the turn that has waited longest, one of a new group before all others.

        A group that has left is no new one before all others have had a step since its last.
        """
        turns = dict.fromkeys(present, -1)
        groups = {turn.group for turn in turns}
        known = (self._turns[turn] for turn in turns if turn in self._turns)
        oldest = min(known, default=self._steps)
        had = {
            turn: step
            for turn, step in self._turns.items()
            if turn.group in groups or step > oldest
        }
        self._turns = turns | had
        chosen = min(turns, key=self._turns.__getitem__)
        self._turns[chosen] = self._steps
        self._steps += 1
        return chosen

    def _budget(self, turn: _Turn) -> int:
        """Return how many tokens of prompts a step may have."""
        waits = (s for s in self.running if isinstance(s, Choice) and not s.prefilling)
        if turn != SHARED and any(_turn_of(sequence) != turn for sequence in waits):
            return self._beside_others
        return self.prefill_tokens

    def _least_served(self, ready: list[Sequence]) -> Sequence:
        tenants = Counter(sequence.request.tenant for sequence in self.running)
        adapters = Counter(map(_version_of, self.running))

        def served(sequence: Sequence) -> tuple[int, int]:
            return tenants[sequence.request.tenant], adapters[_version_of(sequence)]

        return min(ready, key=served)

    def _chunks(self, prefilling: list[Sequence], *, budget: int) -> Iterator[Chunk]:
        """Give half of the budget to the prompt admitted first, the rest to those that end soonest.

        Beside the first there is always half a budget, so no short prompt waits for a long one to
        end; a long one waits for shorter ones until it is the first.
        """
        if not prefilling:
            return
        first, *others = prefilling
        granted = Counter({first: min(first.left, (budget + 1) // 2)})
        budget -= granted[first]
        # What others wait for is computed by the first, which is served anyway, or by the soonest.
        distinct = _distinct([first, *sorted(others, key=attrgetter("left"))])
        for sequence in sorted(distinct, key=attrgetter("left")):
            more = min(sequence.left - granted[sequence], budget)
            granted[sequence] += more
            budget -= more
        for sequence in prefilling:
            if tokens := granted[sequence]:
                yield Chunk(sequence, sequence.computed, sequence.computed + tokens)


def _distinct(sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Leave out those whose next tokens one before them computes: they will copy them."""
    coming = set()
    for sequence in sequences:
        if sequence.lacks is None or sequence.lacks not in coming:
            coming.add(sequence.lacks)
            yield sequence


def _turn_of(sequence: Sequence) -> _Turn:
    return _Turn(sequence.footing.group, sequence.eager)


def _slot_of(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise ValueError("A running sequence has a slot.")
    return sequence.slot


def _version_of(sequence: Sequence) -> tuple[str | None, str | None]:
    """Return whose an adapter is, and its digest: the same bytes may be several tenants'."""
    return sequence.request.tenant, sequence.adapter.digest if sequence.adapter else None
