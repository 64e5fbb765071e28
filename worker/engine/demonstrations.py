"""The solved examples of an adapter before a request, and the tokens that come of it.

A prompt is rendered anew when its request is opened, in the engine's thread, since only then the
adapter is known to be here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from core.errors import InvalidRequest
from models.nn.chat import Renderer
from models.nn.demonstrations import show_before_text, show_in_chat
from models.nn.messages import normalise
from models.nn.methods.base import Method
from models.nn.problem import Pair
from models.wire import Input

if TYPE_CHECKING:
    from torch import Tensor

    from models.nn.terms import Pooling

Features = Callable[[list[int], "Pooling"], "Tensor"]
"""Pools the base's own final hidden states of a text's tokens."""

_PROBES = ("a", "1 b")


class Prompt(NamedTuple):
    """Token ids, and where those of the request itself begin."""

    ids: list[int]
    own: int = 0


@dataclass(frozen=True)
class Asking:
    """A request as a method may look at it to choose; see `models.nn.problem.Query`."""

    text: str
    _ids: list[int]
    _features: Features

    def features(self, pooling: "Pooling") -> "Tensor":
        """Return (d,) float32 of the bare text."""
        return self._features(self._ids, pooling)


@dataclass(frozen=True)
class Demonstrations:
    """What one adapter shows: always the same, or chosen for each request."""

    method: Method
    tensors: Mapping[str, "Tensor"]
    fixed: tuple[Pair, ...]
    renderer: Renderer
    features: Features
    context: int

    @classmethod
    def of(
        cls,
        method: Method,
        tensors: Mapping[str, "Tensor"],
        *,
        renderer: Renderer,
        features: Features,
        context: int,
    ) -> "Demonstrations | None":
        """Return what an adapter shows; None if its method has no such site."""
        if "demonstrations" not in method.sites:
            return None
        fixed = tuple(method.demonstrations(tensors, None))
        return cls(method, tensors, fixed, renderer, features, context)

    def pairs(self, source: Input) -> Sequence[Pair]:
        """Return what to show before this request.

        `InvalidRequest`, before anything is tokenised, for an adapter that shows more than fits.
        """
        shown: Sequence[Pair] = self.fixed
        if not shown:
            text = _question(source, self.renderer)
            ids = self.renderer.encode(text) or [self.renderer.eos_id]
            shown = self.method.demonstrations(self.tensors, Asking(text, ids, self.features))
        size = sum(len(text.encode()) for pair in shown for text in pair)
        if size > self.context * self.renderer.text.longest_token:
            raise takes_too_much(self.context)
        return shown

    def shared(self, wrap: Callable[[str], Input]) -> list[int]:
        """Return the tokens that every request begins with which `wrap` makes of a text."""
        if not self.fixed:
            return []
        first, second = (self.prompt(wrap(probe)).ids for probe in _PROBES)
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
        return [token for token, _ in equal]

    def prompt(self, source: Input) -> Prompt:
        """Return the request's tokens behind those of its demonstrations."""
        return render(show(source, self.pairs(source), self.renderer), self.renderer)


def takes_too_much(context: int, *, taken: str = "more") -> InvalidRequest:
    """Return the error of an adapter that leaves a request no room."""
    return InvalidRequest(
        f"The context of this engine is {context} tokens; the adapter takes {taken}.",
        code="context_length_exceeded",
        param="model",
    )


class Shown(NamedTuple):
    """A request with what goes before it: turns in its conversation, or tokens."""

    source: Input
    before: list[int]


def show(source: Input, pairs: Sequence[Pair], renderer: Renderer) -> Shown:
    """Put solved pairs before a request."""
    if source.messages is None:
        return Shown(source, show_before_text(pairs, renderer))
    messages = [dict(message) for message in show_in_chat(pairs, source.messages)]
    return Shown(Input(messages=messages), [])


def render(shown: Shown, renderer: Renderer) -> Prompt:
    """Return the tokens after which the answer is to be written."""
    source, before = shown
    if source.messages is not None:
        return Prompt(renderer.prompt(source.messages))
    if source.text is not None:
        return Prompt(before + renderer.completion_prompt(source.text), len(before))
    return Prompt(before + (source.ids or [renderer.eos_id]), len(before))


def _question(source: Input, renderer: Renderer) -> str:
    """Return the last thing that the user said."""
    if source.messages is not None:
        said = [turn.content for turn in normalise(source.messages) if turn.role == "user"]
        return said[-1] if said else ""
    return source.text if source.text is not None else renderer.decode(source.ids or [])
