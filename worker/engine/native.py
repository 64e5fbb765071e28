"""Steps by the C++ kernels, where they can do everything that is in a step.

They share the cache with the eager forward, so steps of both kinds may take turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from models.nn.kernels.native import Library
from models.nn.kernels.native.adapter import StepAdapter, prepare
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.model import Unsuited
from models.nn.kernels.native.step import ONE_STEP, Form, Hidden, NativeStep, Until
from models.nn.shape import Shape
from models.nn.terms import Terms
from worker.engine.outcome import Outcome, Places, drawing, pool_chunks, reading, score_chunks
from worker.engine.resident import LaidOut
from worker.engine.scheduler import Chunk, Step
from worker.engine.sequence import Choice

Acting = Mapping[str, StepAdapter]
Packed = StepAdapter | NativeStep
"""An adapter for steps that others share, or a network of its own weights."""

ROWS_OF_ONE: Mapping[Form, int] = {"amx": 8, "avx512": 6, "avx2": 4}
"""How many rows a step computes in about the time of one, which memory takes to bring the weights.

Measured on two cores, in ms: by vectors of 512 bits 1, 6 and 8 rows take 7.3, 7.4 and 8.4 (on one
core 9.4, 11.4 and 13.6), by tiles 1 and 8 rows 10.5 and 11.9, by vectors of 256 bits 1, 4 and 6
rows 9.7, 11.8 and 15.5; but over a base in 8 bits products bind there from the second row on.
"""


class _NotYet:
    """Stands for an adapter that was not packed."""


_NOT_YET = _NotYet()


@dataclass(frozen=True, slots=True)
class _Standing:
    """A step in which rows decoded and nothing else; the next one mostly has the same, a token on.

    For that one what C++ was given stays, but for tokens and positions.
    """

    decodes: tuple[Choice, ...]
    rows: list[Choice]
    """The same in the stream's order."""
    slots: list[int | None]
    greedy: bool
    hidden: Hidden
    outcome: Outcome

    def is_like(self, step: Step, *, greedy: bool) -> bool:
        """Say whether a step has the same rows where they were, and nothing else."""
        same = step.decodes == self.decodes and not step.chunks and not step.drafts
        return same and greedy == self.greedy and self.slots == [row.slot for row in self.rows]

    def go_on(self, until: Until) -> Outcome:
        """Compute it again, for the tokens that its rows have drawn since, and further on."""
        found = self.hidden.go_on(
            [row.last_token for row in self.rows],
            [row.footing.rows + row.computed for row in self.rows],
            until=until if self.greedy else ONE_STEP,
        )
        return replace(self.outcome, likeliest=lambda: found)


class NativeRunner:
    """Computes the steps it can; keeps adapters packed until they are forgotten."""

    def __init__(self, step: NativeStep, shape: Shape, library: Library) -> None:
        self.form = step.form
        in_float32 = step.form == "avx2" and not step.model.record.head.rounded
        self._rows_of_one = 1 if in_float32 else ROWS_OF_ONE.get(step.form, 1)
        self._step = step
        self._shape = shape
        self._library = library
        self._adapters: dict[str, Packed | None] = {}
        """By digest; None is what the step does not compute."""
        self._standing: _Standing | None = None

    def prepare(self, digest: str, terms: Terms) -> Packed | None:
        """Pack an adapter; any thread may, before its first step."""
        adapter = self._adapters.get(digest, _NOT_YET)  # one look: it may be forgotten meanwhile
        if isinstance(adapter, _NotYet):
            try:
                adapter = self._pack(terms)
            except Unsuited:
                adapter = None
            self._adapters[digest] = adapter
        return adapter

    def lay_out(self, digest: str, terms: Terms) -> LaidOut:
        """Pack an adapter, and say what that takes."""
        packed = self.prepare(digest, terms)
        if packed is None:
            return LaidOut(eager=True)
        return LaidOut((packed.model if isinstance(packed, NativeStep) else packed).arena.bytes)

    def forget(self, digest: str | None = None) -> None:
        """Drop an adapter, or all, and the rows that they may act on."""
        self.rest()
        if digest is None:
            self._adapters.clear()
        else:
            self._adapters.pop(digest, None)

    def rest(self) -> None:
        """Let go of rows: there are none at the moment."""
        self._standing = None

    def may_compute(self, step: Step) -> bool:
        """Say whether a step is none that is torch's."""
        return not step.eager

    def spare(self, step: Step, *, terms: Mapping[str, Terms]) -> int:
        """See `Runner.spare`; none where the step is not computed here."""
        spare = self._rows_of_one - step.rows
        return spare if spare > 0 and self._means(step, terms) is not None else 0

    def run(
        self,
        step: Step,
        *,
        terms: Mapping[str, Terms],
        greedy: bool = False,
        until: Until = ONE_STEP,
    ) -> Outcome | None:
        """Compute a step, or return None: something in it is not done here.

        What comes `until` something else is to be done may follow if the rows were the same before.
        """
        if self._standing is not None and self._standing.is_like(step, greedy=greedy):
            return self._standing.go_on(until)
        self._standing = None
        means = self._means(step, terms)
        if means is None:
            return None
        network, acting = means
        decodes = [run for choice in step.decodes for run in _decode(choice, step, acting)]
        runs = decodes + [_prefill(chunk, acting) for chunk in step.chunks]
        order = sorted(range(len(runs)), key=lambda number: id(runs[number].adapter))
        places = _places(runs, order, decodes=len(decodes))
        wanted = drawing(step, places)
        hidden = network(
            [runs[number] for number in order],
            read=reading(step, places),
            likeliest=wanted if greedy else (),
        )
        outcome = Outcome(
            partial(hidden.logits, wanted),
            lambda: [hidden.likeliest(wanted)],
            score_chunks(hidden.logits, step, places),
            pool_chunks(step, places, hidden.states),
        )
        if not step.chunks and not step.drafts:
            rows = [step.decodes[number] for number in order]
            slots = [row.slot for row in rows]
            self._standing = _Standing(step.decodes, rows, slots, greedy, hidden, outcome)
        return outcome

    def _pack(self, terms: Terms) -> Packed:
        if terms.weights:
            model = self._step.model.over(terms.weights)
            return NativeStep(model, self._library, form=self.form)
        return prepare(terms, self._shape, self._library)

    def _means(self, step: Step, terms: Mapping[str, Terms]) -> tuple[NativeStep, Acting] | None:
        """Return the network that computes a step, and the adapters of its rows."""
        if not self.may_compute(step):
            return None
        group = step.group
        network = self._step if group is None else self.prepare(group, terms[group])
        owners = {sequence.footing.owner for sequence in step.sequences} - {None}
        found = {owner: self.prepare(owner, terms[owner]) for owner in owners if owner}
        acting = {owner: one for owner, one in found.items() if isinstance(one, StepAdapter)}
        if isinstance(network, NativeStep) and len(acting) == len(found):
            return network, acting
        return None


def _decode(choice: Choice, step: Step, acting: Acting) -> Iterator[Run]:
    """Yield a run for its last token and for each drafted one, so that all are summed alike."""
    adapter = acting.get(choice.footing.owner or "")
    first = choice.footing.rows + choice.computed
    for place, token in enumerate([choice.last_token, *step.draft(choice).tokens], first):
        yield Run(choice.slot or 0, place, [token], adapter, decodes=True)


def _prefill(chunk: Chunk, acting: Acting) -> Run:
    sequence, footing = chunk.sequence, chunk.sequence.footing
    return Run(
        sequence.slot or 0,
        footing.rows + chunk.start,
        sequence.prompt[chunk.start : chunk.stop],
        acting.get(footing.owner or ""),
    )


def _places(runs: Sequence[Run], order: Sequence[int], *, decodes: int) -> Places:
    """Return where runs lie that follow each other in an order; the first ones decode."""
    places = [(0, 0)] * len(runs)
    last = 0
    for number in order:
        first, last = last, last + len(runs[number].ids)
        places[number] = (first, last)
    return Places([first for first, _ in places[:decodes]], places[decodes:])
