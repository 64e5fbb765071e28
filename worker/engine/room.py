"""How many rows may be in flight: of all requests, and of those of one tenant."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import InvalidRequest, Unavailable

KEPT_FOR_OTHERS = 4
"""No tenant takes the last one of so many places in line, whatever it sends."""


class Room:
    """Counts rows from when a request comes until it has been answered."""

    def __init__(self, *, rows: int, waiting: int) -> None:
        """Let in so many, at work and in line."""
        self._limit = rows + waiting
        self._of_one = self._limit - waiting // KEPT_FOR_OTHERS
        self._taken: Counter[str | None] = Counter()

    @property
    def taken(self) -> int:
        """How many rows are in flight."""
        return self._taken.total()

    @contextmanager
    def take(self, rows: int, *, tenant: str | None) -> Iterator[None]:
        """Count a request's rows within the block.

        `Unavailable` if they are too many now, `InvalidRequest` if they always would be.
        """
        own = self._limit if tenant is None else self._of_one
        if rows > own:
            raise InvalidRequest(
                f"This engine holds {own} choices of one tenant, at work and in line; {rows} were "
                "asked for.",
                code="invalid_value",
                param="n",
            )
        if self.taken + rows > self._limit or self._taken[tenant] + rows > own:
            raise Unavailable("The engine has all the work it can queue.", code="engine_overloaded")
        self._taken[tenant] += rows
        try:
            yield
        finally:
            self._taken[tenant] -= rows
            if not self._taken[tenant]:
                del self._taken[tenant]
