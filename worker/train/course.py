"""How a run takes its steps: by gradient, or by a search of the method's own."""

import hashlib
from collections.abc import Generator, Mapping
from math import isfinite
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from core.errors import InvalidRequest
from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource
from models.nn.methods.base import Method
from models.nn.terms import Terms
from models.spec import LoopSpec
from worker.train.checkpoint import Progress
from worker.train.optim import Optimizer
from worker.train.plan import Plan
from worker.train.problem import TrainingProblem
from worker.train.score import Score
from worker.train.tasks import MicroBatch, Task
from worker.train.turns import StepLost, Turn

T = TypeVar("T")
Want: TypeAlias = Turn | MicroBatch
Work: TypeAlias = Generator[Want, Any, T]
"""See `turns.py`."""


class Taken(NamedTuple):
    """What a step measured, and how many tokens it read."""

    values: dict[str, float]
    tokens: int


class Course(Protocol):
    """The steps of one run."""

    total_steps: int
    """0 where only time will tell."""

    def take(self, progress: Progress) -> Work[Taken]:
        """Take the step after `progress.step`; what it raises leaves the tensors as they were."""

    def is_over(self, progress: Progress) -> bool:
        """Say whether there is no further step."""

    def rests(self, step: int) -> bool:
        """Say whether to measure and to show a checkpoint after `step` steps."""

    def seconds_left(self, progress: Progress, *, pace: float) -> float:
        """Estimate the time to the end at `pace` seconds a step."""

    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on besides the tensors and the number of the step."""

    def forget(self) -> None:
        """Drop what an interrupted step left behind."""


class ByGradient:
    """AdamW on the mean loss of all targets of a batch."""

    def __init__(
        self,
        *,
        method: Method,
        tensors: Mapping[str, Tensor],
        training: Task,
        backbone: Backbone,
        loop: LoopSpec,
        seed: int,
        moments: Mapping[str, Tensor],
    ) -> None:
        self._method = method
        self._tensors = tensors
        self._training = training
        self._base = backbone.base
        self._seed = seed
        self._plan = Plan(training.examples, loop=loop, seed=seed)
        self._freezes = loop.max_seconds is None
        self.total_steps = self._plan.total_steps
        self._optimizer = Optimizer(tensors, method=method, loop=loop)
        self._optimizer.restore(moments)
        self._kept: Terms | None = None

    def take(self, progress: Progress) -> Work[Taken]:
        """See `Course.take`."""
        if self._freezes:
            yield from self._training.prepare(self._terms(), rows=self._plan.rows())
            self._freezes = False
        total = None
        while total is None:
            total = yield from self._learn(progress.step)
        norm = self._optimizer.normalise(total.tokens).item()
        if not isfinite(total.loss) or not isfinite(norm):
            raise diverged(progress.step + 1)
        at, length = self._plan.schedule(step=progress.step, seconds=progress.seconds)
        rate = self._optimizer.learning_rate(at, total_steps=length)
        self._optimizer.step(rate)
        values = {
            "train_loss": total.mean_loss,
            "train_mean_token_accuracy": total.accuracy,
            "learning_rate": rate,
            "grad_norm": norm,
        }
        return Taken(values, self._plan.tokens(progress.step))

    def _learn(self, step: int) -> Work[Score | None]:
        """Gather the gradients of a step; None if they were lost."""
        total = Score()
        try:
            for index, stream in enumerate(self._training.streams(self._plan.batch(step))):
                dropout = DropoutSource(self._seed, step, index)
                score: Score = yield MicroBatch(self._training, stream, self._terms(), dropout)
                total += score
        except StepLost:
            self.forget()
            return None
        return total

    def _terms(self) -> Terms:
        """Return what the tensors are now: always the same terms, if these are all they hold."""
        casts = self._optimizer.casts(self._base.dtype)  # which kept terms hold, and are old before
        if self._kept is not None:
            return self._kept
        terms = Terms.of(self._method, self._tensors, self._base, casts=casts)
        lasting = {id(tensor) for tensor in (*self._tensors.values(), *casts.values())}
        closed = any(term.function is not None for term in terms.linears.values())
        if not closed and all(id(tensor) in lasting for tensor in terms.tensors()):
            self._kept = terms
        return terms

    def is_over(self, progress: Progress) -> bool:
        """See `Course.is_over`."""
        return self._plan.is_over(step=progress.step, seconds=progress.seconds)

    def rests(self, step: int) -> bool:
        """See `Course.rests`."""
        return self._plan.ends_epoch(step)

    def seconds_left(self, progress: Progress, *, pace: float) -> float:
        """See `Course.seconds_left`."""
        return self._plan.seconds_left(step=progress.step, seconds=progress.seconds, pace=pace)

    def state(self) -> dict[str, Tensor]:
        """See `Course.state`."""
        return self._optimizer.state()

    def forget(self) -> None:
        """See `Course.forget`."""
        self._optimizer.forget()


class BySearch:
    """The method's own steps; one that has none is measured after a single empty one."""

    def __init__(
        self,
        *,
        method: Method,
        tensors: Mapping[str, Tensor],
        problem: TrainingProblem,
        loop: LoopSpec,
        seed: int,
    ) -> None:
        self._method = method
        self._tensors = tensors
        self._problem = problem
        self._loop = loop
        self._seed = seed
        self.total_steps = max(method.search_steps, 1)

    def take(self, progress: Progress) -> Work[Taken]:
        """See `Course.take`; a step is a turn of a micro-batch, which is about what it reads."""
        yield Turn(self._loop.micro_batch_tokens)
        if not self._method.search_steps:
            return Taken({}, 0)
        before = self._problem.tokens_read
        found, values = self._method.search(
            self._tensors,
            self._problem,
            step=progress.step,
            generator=seeded(self._seed, progress.step),
        )
        if not all(map(isfinite, values.values())):
            raise diverged(progress.step + 1)
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(found[name])
        return Taken(values, self._problem.tokens_read - before)

    def is_over(self, progress: Progress) -> bool:
        """See `Course.is_over`."""
        spent = (
            (progress.seconds, self._loop.max_seconds),
            (progress.trained_tokens, self._loop.max_tokens),
        )
        is_spent = any(limit is not None and value >= limit for value, limit in spent)
        return progress.step >= self.total_steps or (is_spent and progress.step > 0)

    def rests(self, step: int) -> bool:  # noqa: ARG002
        """Say no: only the end of a search is worth showing."""
        return False

    def seconds_left(self, progress: Progress, *, pace: float) -> float:
        """See `Course.seconds_left`; steps go on reading as many tokens as those before."""
        loop, step = self._loop, progress.step
        ends = [(self.total_steps - step) * pace]
        if loop.max_seconds is not None:
            ends.append(loop.max_seconds - progress.seconds)
        if loop.max_tokens is not None and progress.trained_tokens:
            ends.append((loop.max_tokens / progress.trained_tokens - 1.0) * step * pace)
        return max(min(ends), 0.0)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: a step depends on the tensors, the seed and its number."""
        return {}

    def forget(self) -> None:
        """Drop gradients that a search may have left."""
        for tensor in self._tensors.values():
            tensor.grad = None


def seeded(seed: int, *counters: int) -> torch.Generator:
    """Return a generator that is a function of the seed and these numbers."""
    digest = hashlib.blake2b("/".join(map(str, (seed, *counters))).encode(), digest_size=8)
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big") >> 1)


def diverged(step: int) -> InvalidRequest:
    """Return the error of a run whose numbers are no longer finite."""
    return InvalidRequest(
        f"The loss, its gradient or the adapter was no longer finite at step {step}. Lower the "
        "learning rate, lengthen the warm-up, or look for odd rows in the data.",
        code="non_finite_loss",
    )
