"""From an order to a run: the data read, the method adapted to them, the tensors in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from models.nn.artifact import load_artifact
from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from models.nn.methods.base import Method
from models.nn.problem import Pair
from models.nn.terms import Terms
from models.spec import LoopSpec, TrainOrder, TrainSpec, Validated
from worker.train.checkpoint import Snapshot
from worker.train.course import ByGradient, BySearch, Course, seeded
from worker.train.data import Examples
from worker.train.files import Files
from worker.train.loop import Run
from worker.train.problem import Question, TrainingProblem
from worker.train.report import Channel
from worker.train.rows import Show, describe_prompts
from worker.train.tasks import Labels, NextTokens, Task
from worker.train.turns import Alone


@dataclass(frozen=True)
class Setup:
    """A method that the data have decided, and the data as they are trained."""

    method: Method
    problem: TrainingProblem
    files: Files
    examples: Examples
    held_out: Examples | None
    provenance: dict[str, Any]


def prepare(order: TrainOrder, spec: TrainSpec, *, backbone: Backbone, channel: Channel) -> Setup:
    """Read the training file, tell what became of its rows, and adapt the method to them."""
    files = Files(
        order,
        renderer=_renderer(Path(order.base_folder)),
        max_length=_longest_row(spec, context=backbone.shape.context),
        stay_alive=channel.stay_alive,
    )
    classifies = spec.method.class_labels is not None
    examples = files.prompts if classifies else files.training
    held_out = files.validation_prompts() if classifies else files.validation()
    report: dict[str, Any] = msgspec.to_builtins(examples.counts)
    if held_out is not None:
        report["validation"] = msgspec.to_builtins(held_out.counts)
    channel.say(Validated(report=report))
    problem = TrainingProblem(
        files,
        method=spec.method,
        backbone=backbone,
        loop=spec.loop,
        seed=spec.seed,
        check=channel.check,
    )
    asked = take_over_labels(order, spec.method, backbone)
    method = asked.adapt(problem, seeded(spec.seed))
    provenance = {
        **order.provenance,
        "seed": spec.seed,
        "base_quantization": spec.loop.quantization,
        "data": report,
        "prompt": describe_prompts(files.training_path),
    }
    return Setup(method, problem, files, examples, held_out, provenance)


def _longest_row(spec: TrainSpec, *, context: int) -> int:
    """Return how many tokens of a row have a place in the context behind the method's own rows."""
    # What takes more than half of the context is refused once its tensors are laid out.
    room = max(context - spec.method.rows_before, context // 2)
    return min(spec.loop.max_sequence_length, room)


@lru_cache(maxsize=1)
def _renderer(folder: Path) -> Renderer:
    """Return the renderer of the base that the jobs of a process share."""
    return Renderer.load(folder)


def take_over_labels(order: TrainOrder, method: Method, backbone: Backbone) -> Method:
    """Return the method with its parent's labels: a classifier that goes on keeps their order."""
    if order.parent_folder is None or not hasattr(method, "labels"):
        return method
    parent = load_artifact(Path(order.parent_folder), shape=backbone.shape).method
    if not parent.class_labels:
        return method
    return method.model_copy(update={"labels": parent.class_labels})


def begin(setup: Setup, start: Snapshot, *, spec: TrainSpec, backbone: Backbone) -> Run:
    """Put the tensors in place and make the run that goes on from `start`."""
    method = setup.method
    tensors = {
        name: _place(start.tensors[name], backbone, trained=method.is_trained(name))
        for name in method.tensors(backbone.shape)  # in one order always: sums depend on it
    }
    tasks = _Tasks(setup, tensors, loop=spec.loop, backbone=backbone)
    return Run(
        backbone=backbone,
        method=method,
        tensors=tensors,
        course=make_course(
            setup,
            tensors,
            training=tasks.training,
            start=start,
            spec=spec,
            backbone=backbone,
        ),
        validation=tasks.validation,
        provenance=setup.provenance,
    )


def make_course(
    setup: Setup,
    tensors: dict[str, Tensor],
    *,
    training: Callable[[], Task],
    start: Snapshot,
    spec: TrainSpec,
    backbone: Backbone,
) -> Course:
    """Return how this method takes its steps."""
    if not _by_gradient(setup.method, backbone):
        return BySearch(
            method=setup.method,
            tensors=tensors,
            problem=setup.problem,
            loop=spec.loop,
            seed=spec.seed,
        )
    return ByGradient(
        method=setup.method,
        tensors=tensors,
        training=training(),
        backbone=backbone,
        loop=spec.loop,
        seed=spec.seed,
        moments=start.moments,
    )


class _Tasks:
    """What is learnt and what is measured, made when they are first needed.

    What a search has found decides which solved examples are shown before a held-out question.
    """

    def __init__(
        self,
        setup: Setup,
        tensors: dict[str, Tensor],
        *,
        loop: LoopSpec,
        backbone: Backbone,
    ) -> None:
        self._setup = setup
        self._tensors = tensors
        self._backbone = backbone
        self._validation: Task | None = None
        self._has_validation = False
        self._common: dict[str, Any] = {"backbone": backbone, "max_tokens": loop.micro_batch_tokens}

    def training(self) -> Task:
        """Return the task of the training file."""
        setup = self._setup
        return self._make(setup.examples, setup.files.training_path)

    def validation(self) -> Alone[Task | None]:
        """Return the task of the validation file, if there is one."""
        if not self._has_validation:
            self._validation = yield from self._make_validation()
            self._has_validation = True
        return self._validation

    def _make_validation(self) -> Alone[Task | None]:
        files, examples = self._setup.files, self._setup.held_out
        if examples is None or files.validation_path is None:
            return None
        if (show := self._show()) is not None:
            context = self._backbone.shape.context
            examples = files.validation(show=show, max_length=context) or examples
        task = self._make(examples, files.validation_path)
        terms = Terms.of(self._setup.method, self._tensors, self._backbone.base)
        yield from task.prepare(terms, rows=np.arange(len(examples)))
        return task

    def _make(self, examples: Examples, path: Path) -> Task:
        method, base = self._setup.method, self._backbone.base
        terms = Terms.of(method, self._tensors, base)
        if terms.head is None or method.class_labels is None:
            return NextTokens(examples, **self._common)
        targets = self._setup.files.targets(path, method.class_labels)
        pooling = terms.head.pooling
        return Labels(examples, targets=targets, pooling=pooling, **self._common)

    def _show(self) -> Show | None:
        """Return what shows the method's solved examples before a question, if it has any."""
        method, tensors = self._setup.method, self._tensors
        if "demonstrations" not in method.sites:
            return None
        fixed = method.demonstrations(tensors, None)
        renderer, backbone = self._setup.files.renderer, self._backbone

        def show(pair: Pair) -> Sequence[Pair]:
            question = Question(pair.prompt, backbone, renderer)
            return fixed or method.demonstrations(tensors, question)

        return show


def _by_gradient(method: Method, backbone: Backbone) -> bool:
    return method.search_steps == 0 and method.parameters(backbone.shape) > 0


def _place(tensor: Tensor, backbone: Backbone, *, trained: bool) -> Tensor:
    """Return a float32 master on the device; one that is trained gathers gradients."""
    master = tensor.to(backbone.device, torch.float32, copy=True)
    return master.requires_grad_(trained)
