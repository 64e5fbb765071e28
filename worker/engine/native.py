"""Steps by the C++ kernels, where they can do everything that is in a step.

They share the cache with the eager forward, so steps of both kinds may take turns.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from models.nn.kernels.native import Library
from models.nn.kernels.native.adapter import StepAdapter, prepare
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.model import Unsuited
from models.nn.kernels.native.step import NativeStep
from models.nn.shape import Shape
from models.nn.terms import Terms
from worker.engine.outcome import Outcome, Places, drawing, pool_chunks, score_chunks
from worker.engine.scheduler import Chunk, Step
from worker.engine.sequence import Choice

Acting = Mapping[str, StepAdapter]


class NativeRunner:
    """Computes the steps it can; keeps adapters packed until they are forgotten."""

    def __init__(self, step: NativeStep, shape: Shape, library: Library) -> None:
        self.form = step.form
        self._step = step
        self._shape = shape
        self._library = library
        self._adapters: dict[str, StepAdapter | None] = {}
        """By digest; None is what the step does not compute."""

    def prepare(self, digest: str, terms: Terms) -> StepAdapter | None:
        """Pack an adapter; any thread may, before its first step."""
        if digest not in self._adapters:
            try:
                self._adapters[digest] = prepare(terms, self._shape, self._library)
            except Unsuited:
                self._adapters[digest] = None
        return self._adapters[digest]

    def forget(self, digest: str | None = None) -> None:
        """Drop an adapter, or all."""
        if digest is None:
            self._adapters.clear()
        else:
            self._adapters.pop(digest, None)

    def run(
        self, step: Step, *, terms: Mapping[str, Terms], greedy: bool = False
    ) -> Outcome | None:
        """Compute a step, or return None: something in it is not done here."""
        acting = self._acting(step, terms)
        if acting is None:
            return None
        decodes = [_decode(sequence, acting) for sequence in step.decodes]
        runs = decodes + [_prefill(chunk, acting) for chunk in step.chunks]
        order = sorted(range(len(runs)), key=lambda number: id(runs[number].adapter))
        places = _places(runs, order, decodes=len(decodes))
        wanted = drawing(step, places)
        hidden = self._step([runs[number] for number in order], likeliest=wanted if greedy else ())
        return Outcome(
            partial(hidden.logits, wanted),
            partial(hidden.likeliest, wanted),
            score_chunks(hidden.logits, step, places),
            pool_chunks(step, places, hidden.hidden_td),
        )

    def _acting(self, step: Step, terms: Mapping[str, Terms]) -> Acting | None:
        if any(chunk.sequence.tree is not None for chunk in step.chunks):
            return None
        if step.group is not None and terms[step.group].weights:
            return None
        owners = {sequence.footing.owner for sequence in step.sequences} - {None}
        acting = {owner: self.prepare(owner, terms[owner]) for owner in owners if owner}
        packed = {owner: adapter for owner, adapter in acting.items() if adapter is not None}
        return packed if len(packed) == len(acting) else None


def _decode(sequence: Choice, acting: Acting) -> Run:
    footing = sequence.footing
    return Run(
        sequence.slot or 0,
        footing.rows + sequence.computed,
        [sequence.last_token],
        acting.get(footing.owner or ""),
        decodes=True,
    )


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
