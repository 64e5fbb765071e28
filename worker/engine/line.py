"""Requests in the order of their turns: those that have no rows yet, and whose rows wait."""

from collections.abc import Iterator
from itertools import count
from operator import attrgetter

from worker.engine.request import Request
from worker.engine.scheduler import Scheduler


class Line:
    """Who waits for an adapter or for a slot; the rows of a scheduler that wait are in it.

    Tenants take turns, and the requests of each go in the order in which they came: a request's
    round is the one after that of its tenant's last one, or the present one. So a flood of one
    tenant's delays the others by one turn, not by the flood.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._numbers = count()
        self._unopened: dict[Request, None] = {}
        self._round = 0
        self._rounds: dict[str | None, int] = {}
        """The last one that each tenant has a request in, while there are unopened ones."""

    def __iter__(self) -> Iterator[Request]:
        """Go through requests of which something waits to begin, each once."""
        rows = (row.request for row in self._scheduler.waiting)
        return iter(sorted({*self._unopened, *rows}, key=attrgetter("turn")))

    @property
    def rows(self) -> int:
        """How many rows wait; any thread may ask."""
        lacking = (one.rows - len(one.sequences) for one in list(self._unopened))
        return len(self._scheduler.waiting) + sum(max(0, rows) for rows in lacking)

    def add(self, request: Request) -> None:
        """Put a request behind the others of its tenant."""
        last = self._rounds.get(request.tenant, -1)
        request.turn = max(self._round, last + 1), next(self._numbers)
        self._rounds[request.tenant] = request.turn[0]
        self._unopened[request] = None

    def lacks_rows(self, request: Request) -> bool:
        """Say whether rows are to be made of a request now."""
        return request in self._unopened and len(request.sequences) < request.rows

    def open(self, request: Request) -> None:
        """Let a request have rows: its tenant's turn. For more of them it is added again."""
        self._forget(request)
        self._round = max(self._round, request.turn[0])

    def leave(self, request: Request) -> None:
        """Forget a request; one that is not here is fine."""
        if request in self._unopened:
            self._rounds[request.tenant] -= 1  # what it does not take is left to its tenant
            self._forget(request)

    def wanted(self) -> set[str]:
        """Return the adapter versions, by digest, that requests wait for."""
        adapters = (request.adapter for request in self)
        return {adapter.digest for adapter in adapters if adapter is not None}

    def _forget(self, request: Request) -> None:
        del self._unopened[request]
        if not self._unopened:
            self._rounds.clear()
