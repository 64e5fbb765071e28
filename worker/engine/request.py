"""One request in flight: its rows in the engine's thread, what it gets in the caller's loop."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.errors import GraftworkError
from models.wire import AdapterRef, AnyGenerateLine, ClassifyReply, EmbedReply

if TYPE_CHECKING:
    from worker.engine.sequence import Sequence

Event = AnyGenerateLine | EmbedReply | ClassifyReply | GraftworkError


@dataclass(eq=False, kw_only=True)
class Request:
    """What a caller waits on; only the engine's thread changes `sequences`."""

    adapter: AdapterRef | None
    loop: asyncio.AbstractEventLoop
    rows: int
    """How many slots it can use at once."""
    tenant: str | None = None
    """Whose request it is: what was computed for one tenant serves no other, and none's nobody."""
    turn: tuple[int, int] = (0, 0)
    """Its place in line: a round, and its number in that."""
    sequences: "list[Sequence]" = field(default_factory=list)
    """Rows that have not ended."""
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    @property
    def has_more(self) -> bool:
        """Whether more rows are still to be made of it once it has got some."""
        return False

    def deliver(self, event: Event) -> None:
        """Hand a line, a reply, or the error that ends the request, to the caller (in its loop)."""
        self._events.put_nowait(event)

    def refuse(self, error: GraftworkError) -> None:
        """End a request that the engine's thread will never see; any thread may."""
        outbox = Outbox()
        outbox.put(self, error)
        outbox.flush()


class Outbox:
    """What one step gives, sent to the event loops it belongs to in one call each."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Request, Event]]] = {}

    def put(self, request: Request, event: Event) -> None:
        """Keep an event until the step is over."""
        self._waiting.setdefault(request.loop, []).append((request, event))

    def flush(self) -> None:
        """Send everything; what is meant for a loop that has closed is dropped with it."""
        waiting, self._waiting = self._waiting, {}
        for loop, events in waiting.items():
            try:
                loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:
                if not loop.is_closed():
                    raise


def _deliver(events: list[tuple[Request, Event]]) -> None:
    for request, event in events:
        request.deliver(event)
