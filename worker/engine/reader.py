"""Opens readings once their adapter is here, and takes what steps read of them."""

from typing import Any

import torch

from core.errors import InvalidRequest
from models.wire import ClassifyRequest
from worker.engine.labels import Labelling
from worker.engine.loader import Loader
from worker.engine.reading import Classifying, Embedding, Plan, Reading
from worker.engine.resident import Resident
from worker.engine.sampler import Drawn
from worker.engine.sequence import Excerpt, Footing


class Reader:
    """Decides how a request is read."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def open(self, reading: Reading, resident: Resident | None, *, until: float) -> list[Excerpt]:
        """Return the next rows, see `Reading.feed`.

        `InvalidRequest` where the labels do not suit the adapter.
        """
        reading.plan = reading.plan or self._plan(reading, resident)
        return reading.feed(until=until)

    def pool(self, excerpt: Excerpt, part_d: torch.Tensor) -> None:
        """Add (d,) float64 of a chunk to what the row has pooled."""
        excerpt.pooled = part_d if excerpt.pooled is None else excerpt.pooled + part_d

    def score(self, excerpt: Excerpt, drawn: list[Drawn]) -> None:
        """Keep the logprobs of a chunk."""
        excerpt.logprobs += [_finite(one) for one in drawn]

    def close(self, excerpt: Excerpt) -> None:
        """Turn what a row has read into results."""
        if excerpt.request.plan is not None:
            excerpt.request.plan.close(excerpt)

    def _plan(self, reading: Reading, resident: Resident | None) -> Plan:
        common: dict[str, Any] = {
            "reading": reading,
            "renderer": self._loader.renderer,
            "footing": resident.footing if resident else Footing(),
            "context": self._loader.context,
        }
        if not isinstance(reading.order, ClassifyRequest):
            return Embedding(**common)
        given = reading.order.labels
        common["form"] = resident.form if resident else self._loader.form
        if resident and resident.terms.head is not None and resident.class_labels is not None:
            labels = list(resident.class_labels)
            _require_own(given, labels)
            return Classifying(**common, head=resident.terms.head, labels=labels)
        return Labelling(
            **common,
            labels=_require_labels(given),
            demonstrations=resident.demonstrations if resident else None,
        )


def _finite(drawn: Drawn) -> float:
    if drawn.logprob is None or not drawn.finite:
        return float("nan")
    return drawn.logprob


def _require_own(given: list[str] | None, own: list[str]) -> None:
    if given is not None and set(given) != set(own):
        raise InvalidRequest(
            f"This adapter is a classifier with labels of its own: {', '.join(map(repr, own))}; "
            "leave `labels` out.",
            code="labels_not_allowed",
            param="labels",
        )


def _require_labels(given: list[str] | None) -> list[str]:
    if not given:
        raise InvalidRequest(
            "This model generates text; give the `labels` to choose from.",
            code="labels_required",
            param="labels",
        )
    if len(set(given)) != len(given):
        raise InvalidRequest("Give each label once.", code="invalid_value", param="labels")
    return given
