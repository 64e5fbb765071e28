"""A request for vectors or labels in flight: its inputs are read, and nothing is written.

Its inputs hold half of the rows at most, so that a long list leaves slots to others. Shapes: d
hidden, C classes.
"""

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import torch

from core.errors import GraftworkError, InvalidRequest
from models.nn.chat import Renderer
from models.nn.head import class_logits
from models.wire import ClassifyReply, ClassifyRequest, EmbedReply, EmbedRequest, Input
from worker.engine.demonstrations import Shown, render
from worker.engine.intake import name_of
from worker.engine.request import Request
from worker.engine.sequence import Excerpt, Footing

if TYPE_CHECKING:
    from models.nn.terms import HeadTerm
    from worker.engine.resident import Form

Reply = EmbedReply | ClassifyReply


class Plan(Protocol):
    """What is read of each input, and what comes of it."""

    def excerpts(self, index: int, source: Input) -> list[Excerpt] | None:
        """Return the rows that read one input, or None after a piece of work, to be asked again.

        `InvalidRequest` if it does not fit.
        """

    def close(self, excerpt: Excerpt) -> None:
        """Take what a row has read to its end."""

    def reply(self) -> Reply:
        """Return what the caller waits for, once all rows have ended."""


@dataclass(eq=False, kw_only=True)
class Reading(Request):
    """What the caller waits on until all inputs have been read."""

    order: EmbedRequest | ClassifyRequest
    plan: Plan | None = None
    """Made when the adapter is here."""
    fed: int = 0
    """Inputs that have got rows."""

    @property
    def ended(self) -> bool:
        """Whether every input has been read."""
        return not self.sequences and not self.has_more

    @property
    def has_more(self) -> bool:
        """Whether an input has no rows yet."""
        return self.fed < len(self.order.inputs)

    def feed(self, *, until: float) -> list[Excerpt]:
        """Return rows for the next inputs, as many as may hold slots and are rendered by then.

        There may be none yet: one piece of work is done at least.
        """
        if self.plan is None:
            raise RuntimeError("A reading is opened before it is fed.")
        fresh: list[Excerpt] = []
        while self.has_more and len(self.sequences) + len(fresh) < self.rows:
            rows = self.plan.excerpts(self.fed, self.order.inputs[self.fed])
            if rows is not None:
                fresh += rows
                self.fed += 1
            if monotonic() > until:
                break
        return fresh

    async def result(self) -> Reply:
        """Return the reply; raises the error that ended the request."""
        event = await self._events.get()
        if isinstance(event, GraftworkError):
            raise event
        if not isinstance(event, EmbedReply | ClassifyReply):
            raise TypeError("A reading gets one reply.")
        return event


@dataclass(eq=False, kw_only=True)
class _Pooling:
    """What plans share that gather hidden states."""

    reading: Reading
    renderer: Renderer
    footing: Footing
    context: int
    tokens: dict[int, int] = field(default_factory=dict)

    def admit(self, index: int, ids: list[int]) -> list[int]:
        """Count an input's tokens and refuse what does not fit."""
        require_fit(index, self.footing.rows + len(ids), context=self.context)
        self.tokens[index] = len(ids)
        return ids


@dataclass(eq=False, kw_only=True)
class Embedding(_Pooling):
    """Final hidden states of the bare text, pooled. Demonstrations are not shown."""

    vectors: dict[int, bytes] = field(default_factory=dict)

    def excerpts(self, index: int, source: Input) -> list[Excerpt]:
        """See `Plan.excerpts`."""
        if source.ids is None:
            raise TypeError("What is embedded has been tokenised before.")
        order = self.reading.order
        pooling = order.pooling if isinstance(order, EmbedRequest) else "mean"
        return [
            Excerpt(
                request=self.reading,
                index=index,
                prompt=self.admit(index, source.ids),
                footing=self.footing,
                pooling=pooling,
            )
        ]

    def close(self, excerpt: Excerpt) -> None:
        """See `Plan.close`."""
        self.vectors[excerpt.index] = _pooled(excerpt).cpu().numpy().astype("<f4").tobytes()

    def reply(self) -> EmbedReply:
        """See `Plan.reply`."""
        places = range(len(self.reading.order.inputs))
        return EmbedReply(
            vectors=[self.vectors[index] for index in places],
            tokens=[self.tokens[index] for index in places],
        )


@dataclass(eq=False, kw_only=True)
class Classifying(_Pooling):
    """Probabilities by a classifier's head."""

    form: "Form"
    head: "HeadTerm"
    labels: list[str]
    scores: dict[int, list[float]] = field(default_factory=dict)

    def excerpts(self, index: int, source: Input) -> list[Excerpt]:
        """See `Plan.excerpts`."""
        asked = source if source.text is None else self.form.wrap(source.text)
        prompt = render(Shown(asked, []), self.renderer)
        return [
            Excerpt(
                request=self.reading,
                index=index,
                prompt=self.admit(index, prompt.ids),
                footing=self.footing,
                pooling=self.head.pooling,
            )
        ]

    def close(self, excerpt: Excerpt) -> None:
        """See `Plan.close`."""
        logits_1c = class_logits(_pooled(excerpt)[None], head=self.head)
        self.scores[excerpt.index] = logits_1c[0].softmax(-1).tolist()

    def reply(self) -> ClassifyReply:
        """See `Plan.reply`."""
        places = range(len(self.reading.order.inputs))
        return ClassifyReply(
            labels=self.labels,
            scores=[self.scores[index] for index in places],
            tokens=[self.tokens[index] for index in places],
        )


def require_fit(index: int, tokens: int, *, context: int) -> None:
    """Raise `InvalidRequest` if an input with what belongs to it is too long for a slot."""
    if tokens > context:
        raise InvalidRequest(
            f"This engine's context is {context} tokens; this input needs {tokens}.",
            code="context_length_exceeded",
            param=name_of(index),
        )


def _pooled(excerpt: Excerpt) -> torch.Tensor:
    """Return (d,) float32; an error where it is not a number."""
    pooled_d = excerpt.pooled
    if pooled_d is None or not bool(torch.isfinite(pooled_d).all()):
        raise GraftworkError("What was read of this request is not a number.", code="engine_fault")
    rows = len(excerpt.prompt) if excerpt.pooling == "mean" else 1
    return (pooled_d / rows).float()
