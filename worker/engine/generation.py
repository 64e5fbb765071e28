"""A request for text in flight."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from core.errors import GraftworkError
from models.spec import SamplingSpec
from models.wire import (
    AnyGenerateLine,
    ClassifyReply,
    EmbedReply,
    GenerateEnd,
    GenerateError,
    GenerateOpened,
    Input,
)
from worker.engine.request import Request


@dataclass(eq=False, kw_only=True)
class Generation(Request):
    """What the caller reads line by line; only the engine's thread changes it."""

    source: Input
    """The prompt as it was posted."""
    prompt: list[int]
    """Its tokens; an adapter that shows demonstrations puts them before when it is opened."""
    sampling: SamplingSpec
    seed: int
    stream: bool = True
    """Whether somebody reads along."""
    started: bool = False
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that its first choice did not have to compute."""
    prediction: list[int] = field(default_factory=list)
    """Tokens that the answer may have, in part or whole."""
    drafted_tokens: int = 0
    """Of these, the ones that its rows drafted."""
    accepted_tokens: int = 0
    """Of those, the ones that are part of an answer."""

    @property
    def rejected_tokens(self) -> int:
        """The other ones, drawn differently or behind the end of an answer."""
        return self.drafted_tokens - self.accepted_tokens

    async def lines(self) -> AsyncIterator[AnyGenerateLine]:
        """Yield lines to the last; an error before the first is raised, a later one is a line."""
        opened = False
        while True:
            event = await self._events.get()
            if isinstance(event, GraftworkError):
                if not opened:
                    raise event
                yield GenerateError(status=event.status, code=event.code, message=event.message)
                return
            if isinstance(event, EmbedReply | ClassifyReply):
                raise TypeError("A generation gets lines.")
            opened = opened or isinstance(event, GenerateOpened)
            yield event
            if isinstance(event, GenerateEnd):
                return
