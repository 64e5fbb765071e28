"""The training data as a method may look at it, where the data decide more than gradients do.

Importing this loads no torch.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from models.nn.base import Base
    from models.nn.terms import Pooling

MOST_LABELS = 1000
ROWS_A_LABEL = 2


class Pair(NamedTuple):
    """A row as question and answer: the last turn of the user and the answer to it."""

    prompt: str
    answer: str
    """As it is written: what a completion begins with is part of it."""

    @property
    def label(self) -> str:
        """The answer without the space around it."""
        return self.answer.strip()


class Query(Protocol):
    """One prompt that waits for demonstrations."""

    @property
    def text(self) -> str:
        """The last thing that the user said."""

    def features(self, pooling: Pooling) -> Tensor:
        """Return (d,) float32: the base's own pooled hidden states of the text."""


class Problem(Protocol):
    """A data set over a base; n rows, d hidden."""

    @property
    def base(self) -> Base:
        """The frozen base."""

    @property
    def pairs(self) -> Sequence[Pair]:
        """Every row; `InvalidRequest` where a row has no answer apart from its prompt."""

    @property
    def rows(self) -> Sequence[int]:
        """The rows that the budget of the run lets a method read, n of them; else all."""

    def features(self, pooling: Pooling) -> Tensor:
        """Return (n, d) float32: the base's pooled final hidden states of the prompts of `rows`."""

    def text_features(self, texts: Sequence[str], pooling: Pooling) -> Tensor:
        """Return (n, d) float32 of bare texts, comparable with `Query.features`."""

    def loss(self, t: Mapping[str, Tensor], *, step: int) -> Tensor:
        """Return the mean loss of a batch under these tensors, differentiable in them.

        The batch is a function of the seed and of `step`.
        """

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without a begin token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""

    def check(self) -> None:
        """Say that work goes on; raises if it is to stop. For long searches."""


def find_labels(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Return the distinct answers, sorted; `InvalidRequest` where they are no label set."""
    labels: Counter[str] = Counter()
    blank: str | None = None
    for pair in pairs:
        labels[pair.label] += 1
        if blank is None and not pair.label:
            blank = pair.prompt
    if blank is not None:
        raise InvalidRequest(
            f"The answer to {blank[:80]!r} is blank, which is no label; fill it in or leave the "
            "row out.",
            code="no_label_set",
            param="training_file",
        )
    rows = labels.total()
    most = min(MOST_LABELS, rows // ROWS_A_LABEL)
    if not 2 <= len(labels) <= most:
        raise InvalidRequest(
            f"The answers of the training file's {rows} rows are {len(labels)} different "
            f"texts; a classifier needs rows that end on one of 2 to {MOST_LABELS} labels, "
            f"{ROWS_A_LABEL} rows for each on average. For other answers choose a method that "
            "generates text.",
            code="no_label_set",
            param="training_file",
        )
    return tuple(sorted(labels))
