"""What is drawn in a step, and in those that follow it while there is nothing else to do."""

import time
from collections.abc import Mapping
from ctypes import c_int32
from typing import NamedTuple

from models.nn.kernels.native.step import Until
from models.nn.terms import Terms
from worker.engine.drafts import Drafter
from worker.engine.outcome import Outcome
from worker.engine.runner import Runner
from worker.engine.sampler import LIKELIEST, NO_NUMBER, Drawn, sample
from worker.engine.scheduler import Step
from worker.engine.writer import Writer

STRETCH_SECONDS = 0.5
"""So long at most do steps follow each other without a look at anything else."""


class Computed(NamedTuple):
    """What a step gave; `drawn` has a list for each time it was computed, a token on."""

    outcome: Outcome
    drawn: list[list[Drawn]]


class Stepper:
    """Computes steps without changing a sequence, so that one that failed can be tried again."""

    def __init__(
        self,
        runner: Runner,
        writer: Writer,
        *,
        terms: Mapping[str, Terms],
        drafter: Drafter | None,
        called: c_int32,
    ) -> None:
        """Take what knows the terms of resident adapters; `called` is 1 while something waits."""
        self._runner = runner
        self._writer = writer
        self._terms = terms
        self._drafter = drafter
        self._called = called
        self._seconds = STRETCH_SECONDS
        """How long the last step took."""

    def extend(self, step: Step) -> Step:
        """Put drafts into a step, if there are any and it has room for them."""
        return step if self._drafter is None else self._drafter.extend(step, terms=self._terms)

    def compute(self, step: Step) -> Computed:
        """Compute a step; if it has drafts, these are drawn behind, and it is computed once."""
        began = time.perf_counter()
        computed = self._compute(step)
        self._seconds = (time.perf_counter() - began) / max(1, len(computed.drawn))
        return computed

    def _compute(self, step: Step) -> Computed:
        draws = self._writer.draws(step)
        if not all(draw is LIKELIEST for draw in draws):
            outcome = self._runner.run(step, terms=self._terms)
            return Computed(outcome, [sample(outcome.logits(), draws=draws)])
        until = Until(self._most(step), self._writer.ends(step), self._called)
        outcome = self._runner.run(step, terms=self._terms, greedy=True, until=until)
        found = outcome.likeliest() if draws else ()
        return Computed(outcome, [[_drawn(token) for token in tokens] for tokens in found])

    def _most(self, step: Step) -> int:
        """Return how many steps may follow each other before there is anything else to do."""
        if step.chunks or self._drafts(step):
            return 1
        return max(1, min(int(STRETCH_SECONDS / self._seconds), self._writer.untold(step)))

    def _drafts(self, step: Step) -> bool:
        """Say whether drafts are looked for, which every token may change."""
        return self._drafter is not None and self._runner.spare(step, terms=self._terms) > 0


def _drawn(token: int) -> Drawn:
    return Drawn(token) if token >= 0 else NO_NUMBER
