"""What is drawn in a step, and in those that follow it while there is nothing else to do."""

from collections.abc import Mapping
from ctypes import c_int32
from typing import NamedTuple

from models.nn.kernels.native.step import ONE_STEP, Until
from models.nn.terms import Terms
from worker.engine.drafts import Drafter
from worker.engine.outcome import Outcome
from worker.engine.runner import Runner
from worker.engine.sampler import NO_NUMBER, Drawn, sample
from worker.engine.scheduler import Step
from worker.engine.writer import Writer

STRETCH_SECONDS = 0.5
"""When they are over, no further step follows before a look at everything else."""


class Computed(NamedTuple):
    """What a step gave, and those that followed it; `drawn` has a list for each that drew."""

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

    def extend(self, step: Step) -> Step:
        """Put drafts into a step, if there are any and it has room for them."""
        return step if self._drafter is None else self._drafter.extend(step, terms=self._terms)

    def compute(self, step: Step) -> Computed:
        """Compute a step; if it has drafts, these are drawn behind, and it is computed once."""
        draws = self._writer.draws(step)
        if not all(draw.takes_likeliest for draw in draws):
            outcome = self._runner.run(step, terms=self._terms)
            return Computed(outcome, [sample(outcome.logits(), draws=draws)])
        outcome = self._runner.run(step, terms=self._terms, greedy=True, until=self._until(step))
        found = outcome.likeliest() if draws else ()
        drawn = [[_drawn(token) for token in tokens] for tokens in found]
        if len(found) > 1:
            draws = self._writer.draws(step, ahead=len(found) - 1)
        # no further step follows one in which an end was drawn, so what is banned is in the last
        if found and any(one in draw.banned for one, draw in zip(found[-1], draws, strict=True)):
            drawn[-1] = sample(outcome.logits(), draws=draws)
        return Computed(outcome, drawn)

    def _until(self, step: Step) -> Until:
        """Return how long steps may follow each other before there is anything else to do."""
        if step.chunks or step.drafts or self._drafts(step):
            return ONE_STEP
        most = self._writer.tokens_until_told(step)
        seconds = min(STRETCH_SECONDS, self._writer.seconds_until_told(step))
        if most <= 1 or seconds <= 0:
            return ONE_STEP
        return Until(most, seconds, self._writer.end_tokens(step), self._called)

    def _drafts(self, step: Step) -> bool:
        """Say whether drafts are looked for, which every token may change."""
        return self._drafter is not None and self._runner.spare(step, terms=self._terms) > 0


def _drawn(token: int) -> Drawn:
    return Drawn(token) if token >= 0 else NO_NUMBER
