"""Finetuning I: new output layers on the frozen trunk, trained by gradient.

The second rung of the ladder in Raschka, "Understanding parameter-efficient finetuning of large
language models" (2023).

- `classification`: s = W z + b on the pooled final hidden state z of the prompt, or
  s = W gelu(V z + c) + b. W and b start at zero, so that all classes are as likely. The trunk is
  deterministic, so its states are computed once. Parameters: C d + C, or m d + m + C m + C.
- `generation`: the language-model head, a copy of the base's (V, d); a tied embedding stays the
  base's. Parameters: V d. `lm_head.weight` is the network's own name, but where the head is tied,
  to load it into the network would change the embedding too.

Stored in our own form: `score.weight` (C, d), `score.bias` (C,), `inner.weight` (m, d),
`inner.bias` (m,); or `lm_head.weight` (V, d).
Shapes: d hidden, C classes, m inner layer, V vocabulary.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field, ValidationInfo, field_validator

from models.nn.classifier import LABELS_HELP, Labels, decide_labels, head_term, layer_sizes
from models.nn.methods.base import Method, Site
from models.nn.shape import HEAD, Shape
from models.nn.terms import HeadTerm, LinearTerm, Pooling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem
else:
    torch = lazy_loader.load("torch")

HEAD_SCALE = 0.05
INNER_SCALE, SCORE_SCALE = 0.3, 10.0
"""Hidden states share a large part, which moves all units of an inner layer at once."""


class Head(Method):
    """New output layers for labels, or the language-model head; the trunk stays frozen."""

    sites: ClassVar[frozenset[Site]] = frozenset({"head", "linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"hidden_size": 6, "pooling": "last", "labels": ["no", "perhaps", "yes"]},
        {"task": "generation"},
    )
    learning_rate: ClassVar[float] = 1e-2

    kind: Literal["head"] = Field("head", alias="type")
    task: Literal["classification", "generation"] = Field(
        "classification",
        description="New layers that score labels, or the language-model head that writes text.",
    )
    hidden_size: int = Field(
        0,
        ge=0,
        le=8192,
        description="Classification: the size of a layer before the scores; 0 for none.",
    )
    pooling: Pooling = Field(
        "mean",
        description="Classification: the last hidden state of a prompt, or the mean of all.",
    )
    labels: Labels = Field((), description=f"Classification: {LABELS_HELP}")

    @field_validator("labels")
    @classmethod
    def _only_for_classes(cls, labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if labels and info.data.get("task") == "generation":
            raise ValueError("labels belong to the task `classification`")
        return labels

    @property
    def class_labels(self) -> tuple[str, ...] | None:
        """The labels of a classifier; none before the data are read."""
        return self.labels if self.task == "classification" else None

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the layers' weights and biases, or the head's weight."""
        if self.task == "generation":
            return {f"{HEAD}.weight": shape.linears[HEAD]}
        return layer_sizes(shape, self.labels, hidden_size=self.hidden_size)

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Copy the base's head; or draw an inner layer as torch does, below scores of zero."""
        if self.task == "generation":
            return {f"{HEAD}.weight": base.weight(HEAD).to("cpu", copy=True)}
        tensors = {name: torch.zeros(size) for name, size in self.tensors(base.shape).items()}
        if self.hidden_size:
            bound = 1 / sqrt(base.shape.hidden)
            tensors["inner.weight"].uniform_(-bound, bound, generator=generator)
        return tensors

    def learning_rate_scale(self, name: str) -> float:
        """Move the base's own head a little, and an inner layer less than the scores above it."""
        if self.task == "generation":
            return HEAD_SCALE
        if not self.hidden_size:
            return 1.0
        return INNER_SCALE if name.startswith("inner.") else SCORE_SCALE

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:  # noqa: ARG002
        """Take the labels from the data, or check those given against them."""
        if self.task == "generation":
            return self
        return self.model_copy(update={"labels": decide_labels(self.labels, problem.pairs)})

    def head(self, t: Mapping[str, Tensor], base: Base) -> HeadTerm | None:  # noqa: ARG002
        """Return the new layers as a term."""
        return None if self.task == "generation" else head_term(t, pooling=self.pooling)

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the language-model head that stands for the base's."""
        if self.task == "classification" or place != HEAD:
            return None
        return LinearTerm(weight=t[f"{HEAD}.weight"])
