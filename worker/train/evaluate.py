"""The pass through the network that training and evaluation share, and the evaluation itself.

Shapes: t rows of the stream, d hidden, n rows whose next token is a label, v vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from models.nn.attention import PackedCausal
from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource, Segment, Segments
from models.nn.loss import next_token_loss
from models.nn.terms import Terms
from worker.train.data import Examples, Stream, micro_batches

LOGIT_ROWS = 256
"""How many rows of logits exist at once: they are the largest tensor of a step."""


@dataclass(frozen=True)
class Score:
    """Sums over labelled tokens."""

    loss: float = 0.0
    correct: int = 0
    tokens: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.loss + other.loss, self.correct + other.correct, self.tokens + other.tokens
        )

    @property
    def mean_loss(self) -> float:
        """Mean loss of a labelled token."""
        return self.loss / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of labelled tokens that were the likeliest."""
        return self.correct / self.tokens


def score(
    stream: Stream, *, backbone: Backbone, terms: Terms, dropout: DropoutSource | None = None
) -> Score:
    """Return the sums over one stream; where gradients are on, they are computed on the way.

    The head is applied to labelled rows only, and a piece of them at a time: each piece goes back
    to the hidden states before the next one's logits are made.
    """
    executor = Segments([Segment(0, len(stream.ids_t), terms)], dropout=dropout)
    hidden_td = backbone.hidden(
        stream.ids_t,
        positions=stream.positions_t,
        attention=PackedCausal(stream.sequences),
        executor=executor,
    )
    picked_nd = hidden_td[stream.rows_n]
    cut_nd = picked_nd.detach().requires_grad_(picked_nd.requires_grad)
    total = Score()
    for start in range(0, len(stream.rows_n), LOGIT_ROWS):
        piece = slice(start, start + LOGIT_ROWS)
        logits_nv = backbone.logits(cut_nd[piece], executor=executor.at(stream.rows_n[piece]))
        targets_n = stream.targets_n[piece]
        loss = next_token_loss(logits_nv, targets_n)
        if loss.requires_grad:
            torch.autograd.backward(loss, retain_graph=True)  # terms of the head serve every piece
        correct = (logits_nv.detach().argmax(-1) == targets_n).sum()
        total += Score(loss.item(), int(correct.item()), len(targets_n))
    if cut_nd.grad is not None:
        torch.autograd.backward(picked_nd, cut_nd.grad)
    return total


def evaluate(
    examples: Examples,
    *,
    backbone: Backbone,
    terms: Terms,
    max_tokens: int,
    check: Callable[[], None],
) -> Score:
    """Return the sums over a whole data set, without dropout; `check` may interrupt it."""
    total = Score()
    rows = np.arange(len(examples))
    for stream in micro_batches(examples, rows, max_tokens=max_tokens, device=str(backbone.device)):
        check()
        with torch.no_grad():
            total += score(stream, backbone=backbone, terms=terms)
    return total
