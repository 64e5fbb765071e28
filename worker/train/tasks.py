"""What is learnt from a data set, the next token or a label: how rows become a loss.

Shapes: T rows of a stream, d hidden, n rows with a target, V vocabulary, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource, Segment, Segments
from models.nn.forward import Part, States, forward
from models.nn.head import class_logits, pool
from models.nn.loss import class_loss, next_token_loss
from models.nn.terms import Pooling, Terms
from worker.train.data import Examples, Stream, micro_batches
from worker.train.frozen import Frozen, freeze
from worker.train.score import Score

LOGIT_ROWS = 256
"""How many rows of logits exist at once: they are the largest tensor of a step."""
MOST_FROZEN_BYTES = 2**30

Check = Callable[[], None]


class Task(ABC):
    """One data set of examples to learn from, or to measure on, over one base."""

    def __init__(self, examples: Examples, *, backbone: Backbone, max_tokens: int) -> None:
        self.examples = examples
        self._backbone = backbone
        self._max_tokens = max_tokens
        self._frozen: Frozen | None = None

    def prepare(self, terms: Terms, *, rows: NDArray[np.int64], check: Check) -> None:
        """Compute the trunk's states of the rows that will be read, once.

        Only if these terms leave it alone and memory allows.
        """
        size = self._picked_rows() * self._backbone.shape.hidden * 4
        if terms.leaves_trunk_alone and size <= MOST_FROZEN_BYTES:
            self._frozen = freeze(
                self.examples,
                rows,
                backbone=self._backbone,
                pick=self._pick,
                max_tokens=self._max_tokens,
                check=check,
            )

    def streams(self, rows: NDArray[np.int64]) -> list[Stream]:
        """Return the micro-batches of these rows."""
        device = str(self._backbone.device)
        return list(micro_batches(self.examples, rows, max_tokens=self._max_tokens, device=device))

    def evaluate(self, terms: Terms, *, check: Check) -> Score:
        """Return the sums over the whole data set, without dropout; `check` may interrupt it."""
        total = Score()
        rows = np.arange(len(self.examples))
        device = str(self._backbone.device)
        for stream in micro_batches(
            self.examples, rows, max_tokens=self._max_tokens, device=device
        ):
            check()
            with torch.no_grad():
                total += self.score(stream, terms)
        return total

    @abstractmethod
    def score(self, stream: Stream, terms: Terms, *, dropout: DropoutSource | None = None) -> Score:
        """Return the sums over one stream; where gradients are on, they are computed on the way."""

    @abstractmethod
    def _picked_rows(self) -> int:
        """Return of how many rows the loss needs the hidden states."""

    @abstractmethod
    def _pick(self, stream: Stream, hidden_td: Tensor) -> tuple[Tensor, list[int]]:
        """Return them (n, d), and how many each sequence has."""

    def _states(
        self, stream: Stream, terms: Terms, *, dropout: DropoutSource | None
    ) -> tuple[Tensor, States]:
        """Return the picked states (n, d), and the way from them to logits."""
        if self._frozen is not None:
            picked_nd = self._frozen.of(stream.rows)
            executor = Segments([Segment(0, len(picked_nd), terms)], dropout=dropout)
            return picked_nd, States(picked_nd, self._backbone, executor)
        part = Part(stream.ids_t, stream.lengths, terms)
        states = forward(self._backbone, [part], dropout=dropout)
        picked_nd, _ = self._pick(stream, states.hidden_td)
        return picked_nd, States(picked_nd, states.backbone, states.executor.at(stream.rows_n))


class NextTokens(Task):
    """Every labelled token is predicted from the row before it."""

    def score(self, stream: Stream, terms: Terms, *, dropout: DropoutSource | None = None) -> Score:
        """See `Task.score`.

        The head is applied to labelled rows only, and a piece of them at a time: each piece goes
        back to the hidden states before the next one's logits are made.
        """
        picked_nd, states = self._states(stream, terms, dropout=dropout)
        cut_nd = picked_nd.detach().requires_grad_(picked_nd.requires_grad)
        total = Score()
        for start in range(0, len(picked_nd), LOGIT_ROWS):
            piece = slice(start, start + LOGIT_ROWS)
            rows_n = torch.arange(len(picked_nd), device=picked_nd.device)[piece]
            logits_nv = states.logits(cut_nd[piece], rows_n)
            targets_n = stream.targets_n[piece]
            loss = next_token_loss(logits_nv, targets_n)
            if loss.requires_grad:
                torch.autograd.backward(loss, retain_graph=True)  # the head serves every piece
            correct = (logits_nv.detach().argmax(-1) == targets_n).sum()
            total += Score(loss.item(), int(correct.item()), len(targets_n))
        if cut_nd.grad is not None:
            torch.autograd.backward(picked_nd, cut_nd.grad)
        return total

    def loss(self, stream: Stream, terms: Terms) -> Tensor:
        """Return the mean loss of a token, differentiable as a whole."""
        picked_nd, states = self._states(stream, terms, dropout=None)
        rows_n = torch.arange(len(picked_nd), device=picked_nd.device)
        logits_nv = states.logits(picked_nd, rows_n)
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

    def score(self, stream: Stream, terms: Terms, *, dropout: DropoutSource | None = None) -> Score:
        """See `Task.score`; a label counts as a token."""
        pooled_nd, _ = self._states(stream, terms, dropout=dropout)
        if terms.head is None:
            raise ValueError("A classifier needs a head.")
        scores_nc = class_logits(pooled_nd, head=terms.head)
        targets_n = torch.from_numpy(self.targets[list(stream.rows)]).to(scores_nc.device)
        loss = class_loss(scores_nc, targets_n)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        correct = (scores_nc.detach().argmax(-1) == targets_n).sum()
        return Score(loss.item(), int(correct.item()), len(targets_n))

    def _picked_rows(self) -> int:
        return len(self.examples)

    def _pick(self, stream: Stream, hidden_td: Tensor) -> tuple[Tensor, list[int]]:
        return pool(hidden_td, stream.lengths, pooling=self._pooling), [1] * len(stream.rows)
