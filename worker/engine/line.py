"""Requests in the order in which they came: those that have no rows yet, and whose rows wait."""

from collections.abc import Iterator
from itertools import count
from operator import attrgetter

from worker.engine.request import Request
from worker.engine.scheduler import Scheduler


class Line:
    """Who waits for an adapter or for a slot; the rows of a scheduler that wait are in it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._numbers = count()
        self._unopened: dict[Request, None] = {}

    def __iter__(self) -> Iterator[Request]:
        """Go through requests of which something waits to begin, each once."""
        rows = (row.request for row in self._scheduler.waiting)
        return iter(sorted({*self._unopened, *rows}, key=attrgetter("number")))

    @property
    def rows(self) -> int:
        """How many rows wait; any thread may ask."""
        return len(self._scheduler.waiting) + sum(one.rows for one in list(self._unopened))

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        request.number = next(self._numbers)
        self._unopened[request] = None

    def open(self, request: Request) -> bool:
        """Let a request have rows from now on; False if it had them before."""
        if request not in self._unopened:
            return False
        del self._unopened[request]
        return True

    def leave(self, request: Request) -> None:
        """Forget a request; one that is not here is fine."""
        self._unopened.pop(request, None)

    def wanted(self) -> set[str]:
        """Return the adapter versions, by digest, that requests wait for."""
        adapters = (request.adapter for request in self)
        return {adapter.digest for adapter in adapters if adapter is not None}
