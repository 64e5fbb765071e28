"""What is learnt from a data set, the next token or a label: how rows become a loss.

Shapes: T rows of a stream, d hidden, n rows with a target, V vocabulary, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource, Segment, Segments
from models.nn.forward import Part, States, forward
from models.nn.head import class_logits, pool
from models.nn.kernels.rows import SHARED_ROWS
from models.nn.loss import class_loss, next_token_loss
from models.nn.segments import splits
from models.nn.terms import Pooling, Terms
from worker.train.data import Examples, Stream, micro_batches
from worker.train.frozen import Frozen, freeze
from worker.train.score import Score
from worker.train.turns import Alone, Turn

LOGIT_ROWS = 256
"""How many rows of logits exist at once: they are the largest tensor of a step."""
MOST_FROZEN_BYTES = 2**30


class Task(ABC):
    """One data set of examples to learn from, or to measure on, over one base."""

    def __init__(self, examples: Examples, *, backbone: Backbone, max_tokens: int) -> None:
        self.examples = examples
        self.backbone = backbone
        self.max_tokens = max_tokens
        self._frozen: Frozen | None = None

    def prepare(self, terms: Terms, *, rows: NDArray[np.int64]) -> Alone[None]:
        """Compute the trunk's states of the rows that will be read, once.

        Only if these terms leave it alone and memory allows.
        """
        size = self._picked_rows() * self.backbone.shape.hidden * 4
        if terms.leaves_trunk_alone and size <= MOST_FROZEN_BYTES:
            self._frozen = yield from freeze(
                self.examples,
                rows,
                backbone=self.backbone,
                pick=self._pick,
                max_tokens=self.max_tokens,
            )

    def streams(self, rows: NDArray[np.int64]) -> list[Stream]:
        """Return the micro-batches of these rows."""
        device = str(self.backbone.device)
        return list(micro_batches(self.examples, rows, max_tokens=self.max_tokens, device=device))

    def evaluate(self, terms: Terms) -> Alone[Score]:
        """Return the sums over the whole data set, without dropout, stream by stream."""
        total = Score()
        rows = np.arange(len(self.examples))
        device = str(self.backbone.device)
        for stream in micro_batches(self.examples, rows, max_tokens=self.max_tokens, device=device):
            yield Turn(stream.tokens)
            with torch.no_grad():
                total += self.score(stream, terms)
        return total

    def score(self, stream: Stream, terms: Terms) -> Score:
        """Return the sums over one stream, without dropout."""
        return score_together([MicroBatch(self, stream, terms)])[0]

    @abstractmethod
    def grade(self, stream: Stream, states: States) -> "Graded":
        """Return the sums over one stream, from its `picked` states."""

    @property
    def has_frozen(self) -> bool:
        """Whether the trunk's states were computed once, by `prepare`."""
        return self._frozen is not None

    def frozen(self, batch: "MicroBatch") -> States | None:
        """Return the picked states of a micro-batch that were computed once, if they were."""
        if self._frozen is None:
            return None
        picked_nd = self._frozen.of(batch.stream.rows)
        own = Segment(0, len(picked_nd), batch.terms, batch.dropout)
        return States(picked_nd, self.backbone, Segments([own]), (own,))

    def read_rows(self, stream: Stream) -> Tensor | None:  # noqa: ARG002 - not of all
        """Return the rows (int64) of a stream whose final states are read; None is all."""
        return None

    def picked(self, stream: Stream, states: States) -> States:
        """Return what the loss is computed from, of the states that are read."""
        picked_nd, _ = self._pick(stream, states.hidden_td)
        executor = states.executor.at(stream.rows_n)
        return States(picked_nd, states.backbone, executor, states.segments)

    @abstractmethod
    def _picked_rows(self) -> int:
        """Return of how many rows the loss needs the hidden states."""

    @abstractmethod
    def _pick(self, stream: Stream, hidden_td: Tensor) -> tuple[Tensor, list[int]]:
        """Return them (n, d), and how many each sequence has."""


class NextTokens(Task):
    """Every labelled token is predicted from the row before it."""

    def read_rows(self, stream: Stream) -> Tensor | None:
        """See `Task.read_rows`."""
        return stream.rows_n

    def picked(self, stream: Stream, states: States) -> States:  # noqa: ARG002 - no other was read
        """See `Task.picked`."""
        return states

    def grade(self, stream: Stream, states: States) -> "Graded":
        """See `Task.grade`; the head is applied to labelled rows only."""
        if not states.backbone.has_plain_head(states.executor):
            return self._grade_in_pieces(stream, states)
        return _sum_up(*states.backbone.losses(states.hidden_td, targets_n=stream.targets_n))

    def _grade_in_pieces(self, stream: Stream, states: States) -> "Graded":
        """Do as `grade` where more than the base's head makes the logits.

        Each piece goes back to the hidden states before the next one's logits are made.
        """
        picked_nd = states.hidden_td
        cut_nd = picked_nd.detach().requires_grad_(picked_nd.requires_grad)
        cut = replace(states, hidden_td=cut_nd)
        total = Score()
        for start in range(0, len(picked_nd), LOGIT_ROWS):
            piece = cut.piece(start, start + LOGIT_ROWS)
            rows_n = torch.arange(len(piece.hidden_td), device=picked_nd.device)
            logits_nv = piece.logits(piece.hidden_td, rows_n)
            targets_n = stream.targets_n[start : start + LOGIT_ROWS]
            loss = next_token_loss(logits_nv, targets_n)
            if loss.requires_grad:
                torch.autograd.backward(loss, retain_graph=True)  # the head serves every piece
            correct = (logits_nv.detach().argmax(-1) == targets_n).sum()
            total += Score(loss.item(), int(correct.item()), len(targets_n))
        return Graded(total, picked_nd, cut_nd.grad)

    def loss(self, stream: Stream, terms: Terms) -> Tensor:
        """Return the mean loss of a token, differentiable as a whole."""
        states = _states([MicroBatch(self, stream, terms)])[0]
        rows_n = torch.arange(len(states.hidden_td), device=states.hidden_td.device)
        logits_nv = states.logits(states.hidden_td, rows_n)
        return next_token_loss(logits_nv, stream.targets_n) / len(stream.targets_n)

    def _picked_rows(self) -> int:
        return self.examples.counts.labelled_tokens

    def _pick(self, stream: Stream, hidden_td: Tensor) -> tuple[Tensor, list[int]]:
        counts = [self.examples.labels([row]) for row in stream.rows]
        return hidden_td[stream.rows_n], counts


class Labels(Task):
    """The label of a prompt is predicted from its pooled states; targets (N,) int64 by row."""

    def __init__(
        self,
        examples: Examples,
        *,
        targets: NDArray[np.int64],
        pooling: Pooling,
        backbone: Backbone,
        max_tokens: int,
    ) -> None:
        super().__init__(examples, backbone=backbone, max_tokens=max_tokens)
        self.targets = targets
        self._pooling: Pooling = pooling

    def grade(self, stream: Stream, states: States) -> "Graded":
        """See `Task.grade`; a label counts as a token."""
        (segment,) = states.segments
        if segment.terms is None or segment.terms.head is None:
            raise ValueError("A classifier needs a head.")
        scores_nc = class_logits(states.hidden_td, head=segment.terms.head)
        targets_n = torch.from_numpy(self.targets[list(stream.rows)]).to(scores_nc.device)
        loss = class_loss(scores_nc, targets_n)
        correct = (scores_nc.detach().argmax(-1) == targets_n).sum()
        return Graded(Score(loss.item(), int(correct.item()), len(targets_n)), loss, None)

    def _picked_rows(self) -> int:
        return len(self.examples)

    def _pick(self, stream: Stream, hidden_td: Tensor) -> tuple[Tensor, list[int]]:
        return pool(hidden_td, stream.lengths, pooling=self._pooling), [1] * len(stream.rows)


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one job, to be computed alone or in one stream with those of others."""

    task: Task
    stream: Stream
    terms: Terms
    dropout: DropoutSource | None = None

    @property
    def part(self) -> Part:
        """What it is in a stream; sequences drop for themselves, so that none shares its start."""
        drops = self.dropout is not None and self.terms.drops
        tree = None if drops else self.stream.tree
        return Part(
            self.stream.ids_t,
            self.stream.lengths,
            self.terms,
            self.dropout,
            tree,
            self.task.read_rows(self.stream),
        )

    @property
    def tokens(self) -> int:
        """How many its rows of data have, read or not, shared or not, and its trained prompt."""
        return self.stream.tokens + self.terms.prompt_rows

    @property
    def rows(self) -> int:
        """How many rows the base computes for it."""
        return self.part.rows

    @property
    def most_rows(self) -> int:
        """How high a stream may be for its sake: as its own might be, if no row can tell."""
        return min(self.task.backbone.shared_rows, max(self.task.max_tokens, SHARED_ROWS))

    @cached_property
    def may_share(self) -> bool:
        """Whether others may be in its stream: the base's own weights, in its products as they are
        for those that it shares them with, and a low stream.
        """
        plain = not self.terms.weights and not self.task.has_frozen
        if not plain or self.rows > SHARED_ROWS:
            return False
        return not any(splits(joint, self.terms) for joint in self.task.backbone.joints())


class Graded(NamedTuple):
    """The sums of a micro-batch, and where its backward begins with what gradient."""

    score: Score
    root: Tensor
    gradient: Tensor | None


def score_together(batches: Sequence[MicroBatch]) -> list[Score]:
    """Return the sums of each; one forward and, where gradients are on, one backward for all.

    Several must each say that they may share.
    """
    graded = _grade(batches, _states(batches))
    begun = [each for each in graded if each.root.requires_grad]
    if begun:
        torch.autograd.backward([each.root for each in begun], [each.gradient for each in begun])
    return [each.score for each in graded]


def _grade(batches: Sequence[MicroBatch], states: Sequence[States]) -> list[Graded]:
    """Return the sums of each; by one product with the head, if no job can tell."""
    backbone, rows_nd = states[0].backbone, [own.hidden_td for own in states]
    as_one = len(batches) > 1 and all(
        isinstance(batch.task, NextTokens)
        and backbone.has_plain_head(own.executor)
        and backbone.keeps_losses_apart(own.hidden_td)
        for batch, own in zip(batches, states, strict=True)
    )
    if not as_one:
        return [
            batch.task.grade(batch.stream, own) for batch, own in zip(batches, states, strict=True)
        ]
    targets_n = torch.cat([batch.stream.targets_n for batch in batches])
    losses = backbone.losses(torch.cat(rows_nd), targets_n=targets_n)
    pieces = (torch.split(each, [len(own) for own in rows_nd]) for each in losses)
    return [_sum_up(losses_n, correct_n) for losses_n, correct_n in zip(*pieces, strict=True)]


def _sum_up(losses_n: Tensor, correct_n: Tensor) -> Graded:
    loss = losses_n.sum()
    return Graded(Score(loss.item(), int(correct_n.sum().item()), len(losses_n)), loss, None)


def _states(batches: Sequence[MicroBatch]) -> list[States]:
    """Return of each the states that its loss is computed from."""
    if len(batches) == 1 and (frozen := batches[0].task.frozen(batches[0])) is not None:
        return [frozen]
    whole = forward(batches[0].task.backbone, [batch.part for batch in batches])
    return [batch.task.picked(batch.stream, whole.of(index)) for index, batch in enumerate(batches)]
