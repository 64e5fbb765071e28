"""What methods that classify share: a set of labels, and the tensors of one or two output layers.

Importing this loads no torch. Shapes: C classes, d hidden, m inner layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from core.errors import InvalidRequest
from models.nn.problem import MOST_LABELS, find_labels
from models.nn.shape import Shape
from models.nn.terms import HeadTerm

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from models.nn.problem import Pair
    from models.nn.terms import Pooling

FEWEST_LABELS = 2
LABELS_HELP = "The labels, in the order of the scores. Left out, they are the answers in the data."


def _check_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    if labels and len(labels) < FEWEST_LABELS:
        raise ValueError("a classifier needs at least two labels")
    if len(set(labels)) < len(labels):
        raise ValueError("a label is given twice")
    if any(label != label.strip() or not label for label in labels):
        raise ValueError("labels are not empty and have no space around them, like the answers")
    return labels


Labels = Annotated[
    tuple[str, ...],
    Field(max_length=MOST_LABELS, fail_fast=True),
    AfterValidator(_check_labels),
]


def decide_labels(given: tuple[str, ...], pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Return the labels that a user gave, if they cover the answers, or else those of the data."""
    if not given:
        return find_labels(pairs)
    if missing := sorted({pair.label for pair in pairs} - set(given)):
        raise InvalidRequest(
            f"The training file has the answer {missing[0][:80]!r}, which is not in `labels` "
            f"({len(missing)} such answers); mend the rows, or train from the base, where "
            "`labels` can name it too, or be left out.",
            code="unknown_label",
            param="peft.labels",
        )
    return given


def layer_sizes(
    shape: Shape, labels: tuple[str, ...], *, hidden_size: int
) -> dict[str, tuple[int, ...]]:
    """Return `score` (C, d), or `inner` (m, d) and `score` (C, m); two classes while undecided."""
    classes = len(labels) or FEWEST_LABELS
    if not hidden_size:
        return {"score.weight": (classes, shape.hidden), "score.bias": (classes,)}
    return {
        "inner.weight": (hidden_size, shape.hidden),
        "inner.bias": (hidden_size,),
        "score.weight": (classes, hidden_size),
        "score.bias": (classes,),
    }


def head_term(t: Mapping[str, Tensor], *, pooling: Pooling) -> HeadTerm:
    """Return the layers as a term."""
    return HeadTerm(
        weight=t["score.weight"],
        bias=t["score.bias"],
        pooling=pooling,
        inner_weight=t.get("inner.weight"),
        inner_bias=t.get("inner.bias"),
    )
