"""The training loop: steps, measurements, checkpoints; from where a run is to its end."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

from torch import Tensor

from models.nn.artifact import save_artifact
from models.nn.backbone import Backbone
from models.nn.methods.base import Method
from models.nn.tensor_file import largest
from models.nn.terms import Terms
from models.spec import CheckpointSaved, Metrics, Started
from worker.train.checkpoint import Checkpoints, Progress, Snapshot, new_folder
from worker.train.course import Course, Work, diverged
from worker.train.report import Channel, StepValues
from worker.train.tasks import Task
from worker.train.turns import LEAD, Alone, Interrupted, Turn

LOOK_SECONDS = 0.02
"""Between two looks for what was stored; the others of the gang wait as long at each."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What is trained, how, and on what it is measured."""

    backbone: Backbone
    method: Method
    tensors: dict[str, Tensor]
    course: Course
    validation: Callable[[], Alone[Task | None]]
    provenance: dict[str, object]

    def terms(self) -> Terms:
        """Return the terms as they are now, apart from any gradient."""
        detached = {name: tensor.detach() for name, tensor in self.tensors.items()}
        return Terms.of(self.method, detached, self.backbone.base)


@dataclass
class _Speed:
    """Tokens, steps and seconds of the recent past; old ones fade."""

    tokens: float = 0.0
    steps: float = 0.0
    seconds: float = 1e-9

    def add(self, tokens: int, seconds: float) -> None:
        """Count a step."""
        self.tokens = 0.9 * self.tokens + tokens
        self.steps = 0.9 * self.steps + 1
        self.seconds = 0.9 * self.seconds + seconds

    @property
    def tokens_per_second(self) -> float:
        """How fast it is now."""
        return self.tokens / self.seconds

    @property
    def pace(self) -> float:
        """Seconds of a step."""
        return self.seconds / max(self.steps, 1.0)


@dataclass
class Loop:
    """Runs a `Run` from its progress to its end, or to the next wish to pause."""

    run: Run
    progress: Progress
    channel: Channel
    checkpoints: Checkpoints
    resume_seconds: float
    _speed: _Speed = field(default_factory=_Speed)
    _saved_at: float = field(default_factory=time.monotonic)

    def train(self) -> Work[Path]:
        """Train to the end and return the adapter's folder; `Interrupted` after saving if asked."""
        run, progress = self.run, self.progress
        self.channel.say(
            Started(
                total_steps=run.course.total_steps,
                trained_parameters=run.method.parameters(run.backbone.shape),
                resumed_step=progress.step,
            )
        )
        try:
            while True:
                over = run.course.is_over(progress)
                if progress.step > progress.measured_step and (
                    over or run.course.rests(progress.step)
                ):
                    yield from self._rest(over=over)
                if over:
                    return self._save_adapter()
                yield from self._take_step()
        except Interrupted:
            run.course.forget()
            self._save_resume()
            raise

    def _take_step(self) -> Work[None]:
        progress = self.progress
        began = time.monotonic()
        taken = yield from self.run.course.take(progress)
        seconds = time.monotonic() - began
        progress.step += 1
        progress.seconds += seconds
        progress.trained_tokens += taken.tokens
        self._speed.add(taken.tokens, seconds)
        self._report(taken.values)
        is_time = time.monotonic() - self._saved_at >= self.resume_seconds
        if is_time and not self.checkpoints.any_waits:
            self._save_resume_if_possible()

    def _rest(self, *, over: bool) -> Work[None]:
        """Measure, then save what users can call and, unless it is over, the run goes on from.

        The latter only if none waits to be stored, and the former once not many wait: a store that
        is slow, or away, would have the disk filled.
        """
        run, progress = self.run, self.progress
        while self.checkpoints.many_adapters_wait:
            yield Turn(LEAD)  # or the others of the gang would wait too, for it to catch up
            time.sleep(LOOK_SECONDS)
        if (validation := (yield from run.validation())) is not None:
            found = yield from validation.evaluate(run.terms())
            if not isfinite(found.loss):
                raise diverged(progress.step)
            loss, accuracy = found.mean_loss, found.accuracy
            self._report(
                {
                    "valid_loss": loss,
                    "valid_mean_token_accuracy": accuracy,
                    "full_valid_loss": loss,
                    "full_valid_mean_token_accuracy": accuracy,
                }
            )
        progress.measured_step = progress.step
        self._say_saved(
            "epoch",
            adapter_folder=str(self._save_adapter()),
            resume_folder="" if over or self.checkpoints.any_waits else self._save(),
            over=over,
        )

    def _report(self, values: dict[str, float]) -> None:
        if not values:
            return  # a step that measures nothing
        progress, speed = self.progress, self._speed
        progress.history.append(StepValues(progress.step, values))
        self.channel.say(
            Metrics(
                step=progress.step,
                values=values,
                tokens_per_second=speed.tokens_per_second,
                eta_seconds=self.run.course.seconds_left(progress, pace=speed.pace),
                trained_tokens=progress.trained_tokens,
            )
        )

    def _save_resume(self) -> None:
        self._say_saved("resume", adapter_folder="", resume_folder=self._save())

    def _save_resume_if_possible(self) -> None:
        """Save, but let a full disk cost a checkpoint between epochs and not the job."""
        try:
            self._save_resume()
        except OSError:
            log.exception("could not save a resume checkpoint; training goes on")
            self._saved_at = time.monotonic()

    def _save(self) -> str:
        """Save what the run goes on from; return its folder."""
        snapshot = Snapshot(self.run.tensors, self.run.course.state(), self.progress)
        folder = self.checkpoints.save(snapshot)
        self._saved_at = time.monotonic()
        return str(folder)

    def _say_saved(
        self,
        kind: Literal["epoch", "resume"],
        *,
        adapter_folder: str,
        resume_folder: str,
        over: bool = False,
    ) -> None:
        self.channel.say(
            CheckpointSaved(
                step=self.progress.step,
                kind=kind,
                adapter_folder=adapter_folder,
                resume_folder=resume_folder,
                metrics=self.progress.latest(),
                over=over,
            )
        )

    def _save_adapter(self) -> Path:
        """Write the adapter as it is at this step, unless it is there already."""
        run, progress = self.run, self.progress
        target = self.checkpoints.adapter_folder(progress.step)
        if not target.exists():
            if not isfinite(largest(run.tensors.values())):
                raise diverged(progress.step)
            with new_folder(target) as scratch:
                save_artifact(
                    scratch,
                    method=run.method,
                    tensors=run.tensors,
                    base=run.backbone.base,
                    provenance={**run.provenance, "metrics": progress.latest()},
                )
        return target
