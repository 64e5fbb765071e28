"""Feature-based: a classifier fitted to the frozen base's pooled final hidden states.

The first rung of the ladder in Raschka, "Understanding parameter-efficient finetuning of large
language models" (2023). z (d,) is the last final-normed hidden state of the prompt, or the mean of
them; s = W z + b, or s = W gelu(V z + c) + b. Each row is read once; the fit is a convex (or small)
problem on the cached states, by L-BFGS in float64 with states scaled to mean 0 and variance 1.
The scaling is folded into the first layer, so that what is stored is a plain classifier.

Parameters: C d + C, or m d + m + C m + C with an inner layer of m. Stored in our own form:
`score.weight` (C, d), `score.bias` (C,), and `inner.weight` (m, d), `inner.bias` (m,) of an mlp.
Shapes: N rows, d hidden, C classes, m inner layer.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from models.nn.classifier import LABELS_HELP, Labels, decide_labels, head_term, layer_sizes
from models.nn.methods.base import Method, Site
from models.nn.shape import Shape
from models.nn.terms import HeadTerm, Pooling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem
else:
    torch = lazy_loader.load("torch")

MOST_ITERATIONS = 500
CONSTANT = 1e-6
"""A feature that varies less than this is left as it is."""


class FeatureBased(Method):
    """Scores = W z + b on hidden states z that are computed once; the base is never trained.

    A logistic regression or a small network with one inner layer, fitted in one step.
    """

    sites: ClassVar[frozenset[Site]] = frozenset({"head"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"pooling": "mean", "labels": ["no", "perhaps", "yes"]},
        {"classifier": "mlp", "hidden_size": 6},
    )

    kind: Literal["feature_based"] = Field("feature_based", alias="type")
    classifier: Literal["logistic", "mlp"] = Field(
        "logistic", description="Logistic regression, or a network with one inner layer."
    )
    pooling: Pooling = Field(
        "mean", description="The last hidden state of a prompt, or the mean of all of them."
    )
    regularisation: float = Field(
        0.1,
        gt=0,
        le=1000,
        description="Half of it, times the sum of squared weights, is added to the mean loss.",
    )
    hidden_size: int = Field(64, ge=1, le=8192, description="The inner layer of an `mlp`.")
    labels: Labels = Field((), description=LABELS_HELP)

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The labels; none before the data are read."""
        return self.labels

    @property
    def search_steps(self) -> int:
        """The fit is one step."""
        return 1

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the layers' weights and biases."""
        inner = self.hidden_size if self.classifier == "mlp" else 0
        return layer_sizes(shape, self.labels, hidden_size=inner)

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        """Return zeros, which the fit does not look at."""
        return {name: torch.zeros(size) for name, size in self.tensors(base.shape).items()}

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:  # noqa: ARG002
        """Take the labels from the data, or check those given against them."""
        return self.model_copy(update={"labels": decide_labels(self.labels, problem.pairs)})

    def search(
        self,
        t: Mapping[str, Tensor],
        problem: Problem,
        *,
        step: int,  # noqa: ARG002 - there is one
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Fit the classifier; the same data and seed give the same bits on one machine."""
        features_nd = problem.features(self.pooling).detach().to("cpu", torch.float64)
        ids = {label: index for index, label in enumerate(self.labels)}
        answers_n = torch.tensor([ids[problem.pairs[row].label] for row in problem.rows])
        mean_d, spread_d = features_nd.mean(0), features_nd.std(0, correction=0)
        spread_d = torch.where(spread_d > CONSTANT, spread_d, 1.0)
        scaled_nd = (features_nd - mean_d) / spread_d
        fitted = {name: _start(tensor, name, generator) for name, tensor in t.items()}
        self._fit(fitted, scaled_nd, answers_n, check=problem.check)
        scores_nc = _scores(fitted, scaled_nd)
        measured = {
            "train_loss": _loss(scores_nc, answers_n).item(),
            "train_mean_token_accuracy": (scores_nc.argmax(1) == answers_n).double().mean().item(),
        }
        first = "inner" if "inner.weight" in t else "score"
        weight = fitted[f"{first}.weight"] / spread_d
        fitted |= {
            f"{first}.weight": weight,
            f"{first}.bias": fitted[f"{first}.bias"] - weight @ mean_d,
        }
        return {name: tensor.float() for name, tensor in fitted.items()}, measured

    def _fit(
        self,
        t: dict[str, Tensor],
        features_nd: Tensor,
        answers_n: Tensor,
        *,
        check: Callable[[], None],
    ) -> None:
        """Minimise the mean loss and the penalty, in place."""
        optimizer = torch.optim.LBFGS(
            list(t.values()),
            max_iter=MOST_ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        weights = [tensor for name, tensor in t.items() if name.endswith(".weight")]

        def closure() -> Tensor:
            check()
            optimizer.zero_grad()
            penalty = sum(weight.square().sum() for weight in weights) * (self.regularisation / 2)
            loss = _loss(_scores(t, features_nd), answers_n) + penalty
            torch.autograd.backward(loss)
            return loss

        with torch.enable_grad():
            for tensor in t.values():
                tensor.requires_grad_()
            optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no types here
            for tensor in t.values():
                tensor.requires_grad_(False)  # noqa: FBT003

    def head(self, t: Mapping[str, Tensor], base: Base) -> HeadTerm:  # noqa: ARG002
        """Return the classifier as a term."""
        return head_term(t, pooling=self.pooling)


def _start(tensor: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Return where the fit starts, float64: an inner layer drawn as torch's linear layer's."""
    started = torch.zeros(tensor.shape, dtype=torch.float64)
    if name == "inner.weight":
        bound = 1 / sqrt(tensor.shape[1])
        started.uniform_(-bound, bound, generator=generator)
    return started


def _scores(t: Mapping[str, Tensor], z_nd: Tensor) -> Tensor:
    """Return (N, C) from (N, d)."""
    if "inner.weight" in t:
        inner_nm = torch.nn.functional.linear(z_nd, t["inner.weight"], t["inner.bias"])
        z_nd = torch.nn.functional.gelu(inner_nm)
    return torch.nn.functional.linear(z_nd, t["score.weight"], t["score.bias"])


def _loss(scores_nc: Tensor, answers_n: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores_nc, answers_n)
