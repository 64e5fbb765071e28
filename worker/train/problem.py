"""The training data as methods may look at it (`models.nn.problem.Problem`).

Shapes: n rows or texts, d hidden.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.base import Base
from models.nn.chat import Renderer
from models.nn.forward import Part, forward
from models.nn.head import pool
from models.nn.methods.base import Method
from models.nn.problem import Pair
from models.nn.terms import Pooling, Terms
from models.spec import LoopSpec
from worker.train.data import Stream
from worker.train.files import Files
from worker.train.frozen import freeze
from worker.train.plan import Plan, epoch_order
from worker.train.tasks import NextTokens
from worker.train.turns import do_alone

TRIAL_ROWS = 8


class TrainingProblem:
    """A training file over a base; what is costly is computed when it is asked for, and kept."""

    def __init__(
        self,
        files: Files,
        *,
        method: Method,
        backbone: Backbone,
        loop: LoopSpec,
        seed: int,
        check: Callable[[], None],
    ) -> None:
        self.check = check
        self._files = files
        self._method = method
        self._backbone = backbone
        self._loop = loop
        self._seed = seed
        self._features = cache(self._compute_features)
        self.tokens_read = 0
        """Tokens of the rows that went through the base."""

    @property
    def base(self) -> Base:
        """The frozen base."""
        return self._backbone.base

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """See `Problem.pairs`."""
        return list(self._files.pairs())

    @cached_property
    def rows(self) -> Sequence[int]:
        """See `Problem.rows`: the first of the seeded order, in the file's own."""
        prompts = self._files.prompts
        order = epoch_order(len(prompts), seed=self._seed, epoch=0)
        budget = self._token_budget(order)
        if budget is None:
            return range(len(prompts))
        ends = np.cumsum(np.diff(prompts.offsets)[order])
        return sorted(order[: int(np.searchsorted(ends, budget)) + 1].tolist())

    def features(self, pooling: Pooling) -> Tensor:
        """See `Problem.features`."""
        return self._features(pooling)

    def text_features(self, texts: Sequence[str], pooling: Pooling) -> Tensor:
        """See `Problem.text_features`."""
        return torch.cat([self._text_features(text, pooling) for text in texts])

    def loss(self, t: Mapping[str, Tensor], *, step: int) -> Tensor:
        """See `Problem.loss`; a batch is what fits one micro-batch."""
        stream = self._batch(step)
        self.tokens_read += stream.tokens
        return self._task.loss(stream, Terms.of(self._method, t, self.base))

    def encode(self, text: str) -> list[int]:
        """See `Problem.encode`."""
        renderer = self._files.renderer
        return renderer.encode(text)[len(renderer.begin_ids) :]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Problem.decode`."""
        return self._files.renderer.decode(ids)

    @cached_property
    def _task(self) -> NextTokens:
        return NextTokens(
            self._files.training,
            backbone=self._backbone,
            max_tokens=self._loop.micro_batch_tokens,
        )

    @cached_property
    def _plan(self) -> Plan:
        return Plan(self._files.training, loop=self._loop, seed=self._seed)

    def _batch(self, step: int) -> Stream:
        """Return what fits one micro-batch of a step's rows, in the order in which they are drawn.

        Of several micro-batches the first would have the longest rows, and the others' no turn.
        """
        rows = self._plan.batch(step)
        ends = np.cumsum([self._files.training.length(row) for row in rows])
        fitting = int(np.searchsorted(ends, self._task.max_tokens, side="right"))
        return self._task.streams(rows[: max(fitting, 1)])[0]

    def _token_budget(self, order: NDArray[np.int64]) -> float | None:
        """Return how many tokens of prompts the run may read; a time is tried out on a few."""
        if self._loop.max_seconds is None:
            return self._loop.max_tokens
        began, before = time.monotonic(), self.tokens_read
        self._pool(order[:TRIAL_ROWS], "last")
        speed = (self.tokens_read - before) / max(time.monotonic() - began, 1e-6)
        return speed * self._loop.max_seconds

    def _compute_features(self, pooling: Pooling) -> Tensor:
        return self._pool(np.array(self.rows), pooling)

    def _pool(self, rows: NDArray[np.int64], pooling: Pooling) -> Tensor:
        """Return (n, d) float32: the pooled states of these rows' prompts."""
        prompts = self._files.prompts
        self.tokens_read += sum(prompts.length(row) for row in rows)
        states = freeze(
            prompts,
            rows,
            backbone=self._backbone,
            pick=lambda stream, hidden_td: (
                pool(hidden_td, stream.lengths, pooling=pooling),
                [1] * len(stream.rows),
            ),
            max_tokens=self._loop.micro_batch_tokens,
        )
        return do_alone(states, check=self.check).of(rows.tolist())

    def _text_features(self, text: str, pooling: Pooling) -> Tensor:
        self.check()
        ids = bare_ids(text, backbone=self._backbone, renderer=self._files.renderer)
        self.tokens_read += len(ids)
        return pooled(ids, pooling, backbone=self._backbone)


def bare_ids(text: str, *, backbone: Backbone, renderer: Renderer) -> list[int]:
    """Return the ids of a bare text, as far as the base can read it; one at least."""
    return (renderer.encode(text) or [renderer.eos_id])[: backbone.shape.context]


@torch.no_grad()
def pooled(ids: Sequence[int], pooling: Pooling, *, backbone: Backbone) -> Tensor:
    """Return (1, d) float32: the base's pooled final hidden states of one sequence."""
    ids_t = torch.tensor(ids, device=backbone.device)
    hidden_td = forward(backbone, [Part(ids_t, (len(ids_t),))]).hidden_td
    return pool(hidden_td, [len(ids_t)], pooling=pooling)


@dataclass(frozen=True)
class Question:
    """A row of a data set as a `Query`."""

    text: str
    _backbone: Backbone
    _renderer: Renderer

    def features(self, pooling: Pooling) -> Tensor:
        """See `Query.features`."""
        ids = bare_ids(self.text, backbone=self._backbone, renderer=self._renderer)
        return pooled(ids, pooling, backbone=self._backbone)[0]
