"""One request in flight: its rows in the engine's thread, its lines in the caller's event loop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from core.errors import GraftworkError
from models.spec import (
    AdapterRef,
    AnyGenerateLine,
    GenerateEnd,
    GenerateError,
    GenerateStart,
    SamplingSpec,
)
from worker.engine.sequence import Sequence

Event = AnyGenerateLine | GraftworkError


@dataclass(eq=False)
class Generation:
    """What the caller waits on; only the engine's thread changes `sequences` and counters."""

    prompt: list[int]
    sampling: SamplingSpec
    adapter: AdapterRef | None
    loop: asyncio.AbstractEventLoop
    sequences: list[Sequence] = field(default_factory=list)
    """Rows that have not ended."""
    started: bool = False
    completion_tokens: int = 0
    _lines: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def deliver(self, event: Event) -> None:
        """Hand a line, or the error that ends the request, to the caller (in its loop)."""
        self._lines.put_nowait(event)

    async def lines(self) -> AsyncIterator[AnyGenerateLine]:
        """Yield lines to the last; an error before the first is raised, a later one is a line."""
        started = False
        while True:
            event = await self._lines.get()
            if isinstance(event, GraftworkError):
                if not started:
                    raise event
                yield GenerateError(status=event.status, code=event.code, message=event.message)
                return
            started = started or isinstance(event, GenerateStart)
            yield event
            if isinstance(event, GenerateEnd):
                return


class Outbox:
    """Lines of one step, sent to the event loops they belong to in one call each."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Event]]] = {}

    def put(self, generation: Generation, event: Event) -> None:
        """Keep a line until the step is over."""
        self._waiting.setdefault(generation.loop, []).append((generation, event))

    def flush(self) -> None:
        """Send everything; what is meant for a loop that has closed is dropped with it."""
        waiting, self._waiting = self._waiting, {}
        for loop, events in waiting.items():
            try:
                loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:
                if not loop.is_closed():
                    raise


def _deliver(events: list[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.deliver(event)
