"""The training loop: rows in seeded order, gradients of whole batches, checkpoints, metrics."""

import logging
import time
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InvalidRequest
from models.nn.artifact import save_artifact
from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource
from models.nn.methods.base import Method
from models.nn.terms import Terms
from models.spec import CheckpointSaved, LoopSpec, Metrics, Started
from worker.train.checkpoint import Checkpoints, Snapshot, new_folder
from worker.train.data import Examples, epoch_order, micro_batches
from worker.train.evaluate import Score, evaluate, score
from worker.train.optim import Optimizer
from worker.train.report import Channel, Interrupted, StepValues

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What is trained, on what, by what rules."""

    backbone: Backbone
    method: Method
    tensors: dict[str, Tensor]
    loop: LoopSpec
    seed: int
    training: Examples
    validation: Examples | None
    provenance: dict[str, object]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch; the last batch may be short."""
        return -(-len(self.training) // self.loop.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.loop.n_epochs * self.steps_per_epoch


@dataclass
class _Speed:
    """Tokens per second over the recent past."""

    tokens: float = 0.0
    seconds: float = 0.0
    mark: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Time that passes until here is not training."""
        self.mark = time.monotonic()

    def add(self, tokens: int) -> float:
        """Count a step, let old ones fade, return the speed."""
        now = time.monotonic()
        self.tokens = 0.9 * self.tokens + tokens
        self.seconds = 0.9 * self.seconds + now - self.mark
        self.mark = now
        return self.tokens / max(self.seconds, 1e-9)


class Loop:
    """Runs a `Run` from its progress to its end, or to the next wish to pause."""

    def __init__(
        self,
        run: Run,
        *,
        channel: Channel,
        checkpoints: Checkpoints,
        start: Snapshot,
        resume_seconds: float,
    ) -> None:
        self.progress = start.progress
        self._run = run
        self._channel = channel
        self._checkpoints = checkpoints
        self._resume_seconds = resume_seconds
        self._saved_at = time.monotonic()
        self._speed = _Speed()
        self._optimizer = Optimizer(
            run.tensors, method=run.method, loop=run.loop, total_steps=run.total_steps
        )
        self._optimizer.restore(start.moments)

    def run(self) -> Path:
        """Train to the end and return the adapter's folder; `Interrupted` after saving if asked."""
        run, progress = self._run, self.progress
        parameters = sum(tensor.numel() for tensor in run.tensors.values())
        self._channel.say(
            Started(
                total_steps=run.total_steps,
                trained_parameters=parameters,
                resumed_step=progress.step,
            )
        )
        try:
            while progress.epochs_finished < run.loop.n_epochs:
                self._train_epoch()
                self._finish_epoch()
        except Interrupted:
            self._optimizer.forget()
            self._save_resume()
            raise
        return self._save_adapter()

    def _train_epoch(self) -> None:
        """Take the steps of the current epoch that are still to be taken."""
        run, progress = self._run, self.progress
        order = epoch_order(len(run.training), seed=run.seed, epoch=progress.epochs_finished)
        first = progress.step - progress.epochs_finished * run.steps_per_epoch
        self._speed.restart()
        for index in range(first, run.steps_per_epoch):
            rows = order[index * run.loop.batch_size : (index + 1) * run.loop.batch_size]
            self._train_step(rows)
            if time.monotonic() - self._saved_at >= self._resume_seconds:
                self._save_resume_if_possible()
                self._speed.restart()

    def _train_step(self, rows: NDArray[np.int64]) -> None:
        """One optimiser step on the mean loss of all labelled tokens of a batch."""
        run, progress = self._run, self.progress
        total = Score()
        streams = micro_batches(
            run.training,
            rows,
            max_tokens=run.loop.micro_batch_tokens,
            device=str(run.backbone.device),
        )
        for index, stream in enumerate(streams):
            self._channel.check()
            terms = Terms.of(run.method, run.tensors, run.backbone.base)
            dropout = DropoutSource(run.seed, progress.step, index)
            total += score(stream, backbone=run.backbone, terms=terms, dropout=dropout)
        norm = self._optimizer.normalise(total.tokens).item()
        if not isfinite(total.loss) or not isfinite(norm):
            raise _diverged(progress.step + 1)
        rate = self._optimizer.learning_rate(progress.step)
        self._optimizer.step(progress.step)
        progress.step += 1
        tokens = sum(run.training.length(row) for row in rows)
        progress.trained_tokens += tokens
        self._report(
            {
                "train_loss": total.mean_loss,
                "train_mean_token_accuracy": total.accuracy,
                "learning_rate": rate,
                "grad_norm": norm,
            },
            tokens_per_second=self._speed.add(tokens),
        )

    def _finish_epoch(self) -> None:
        """Evaluate, then save both what users can call and what the run can go on from."""
        run, progress = self._run, self.progress
        if run.validation is not None:
            found = evaluate(
                run.validation,
                backbone=run.backbone,
                terms=Terms.of(run.method, _detached(run.tensors), run.backbone.base),
                max_tokens=run.loop.micro_batch_tokens,
                check=self._channel.check,
            )
            if not isfinite(found.loss):
                raise _diverged(progress.step)
            loss, accuracy = found.mean_loss, found.accuracy
            self._report(
                {
                    "valid_loss": loss,
                    "valid_mean_token_accuracy": accuracy,
                    "full_valid_loss": loss,
                    "full_valid_mean_token_accuracy": accuracy,
                },
                tokens_per_second=self._speed.tokens / max(self._speed.seconds, 1e-9),
            )
        progress.epochs_finished += 1
        self._save("epoch", adapter_folder=str(self._save_adapter()))

    def _report(self, values: dict[str, float], *, tokens_per_second: float) -> None:
        progress = self.progress
        progress.history.append(StepValues(progress.step, values))
        all_tokens = self._run.loop.n_epochs * self._run.training.counts.tokens
        remaining = all_tokens - progress.trained_tokens
        self._channel.say(
            Metrics(
                step=progress.step,
                values=values,
                tokens_per_second=tokens_per_second,
                eta_seconds=remaining / tokens_per_second if tokens_per_second else 0.0,
                trained_tokens=progress.trained_tokens,
            )
        )

    def _save_resume(self) -> None:
        self._save("resume", adapter_folder="")

    def _save_resume_if_possible(self) -> None:
        """Save, but let a full disk cost a checkpoint between epochs and not the job."""
        try:
            self._save_resume()
        except OSError:
            log.exception("could not save a resume checkpoint; training goes on")
            self._saved_at = time.monotonic()

    def _save(self, kind: Literal["epoch", "resume"], *, adapter_folder: str) -> None:
        progress = self.progress
        snapshot = Snapshot(self._run.tensors, self._optimizer.state(), progress)
        folder = self._checkpoints.save(snapshot)
        self._saved_at = time.monotonic()
        self._channel.say(
            CheckpointSaved(
                step=progress.step,
                kind=kind,
                adapter_folder=adapter_folder,
                resume_folder=str(folder),
                metrics=progress.latest(),
            )
        )

    def _save_adapter(self) -> Path:
        """Write the adapter as it is at this step, unless it is there already."""
        run, progress = self._run, self.progress
        target = self._checkpoints.folder / f"adapter-{progress.step:08}"
        if not target.exists():
            with new_folder(target) as scratch:
                save_artifact(
                    scratch,
                    method=run.method,
                    tensors=run.tensors,
                    shape=run.backbone.shape,
                    provenance={**run.provenance, "metrics": progress.latest()},
                )
        return target


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _diverged(step: int) -> InvalidRequest:
    return InvalidRequest(
        f"The loss or its gradient was no longer a finite number at step {step}. Lower the "
        "learning rate, lengthen the warm-up, or look for odd rows in the data.",
        code="non_finite_loss",
        param="learning_rate_multiplier",
    )
