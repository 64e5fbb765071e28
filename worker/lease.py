"""A worker's hold on one row: kept by a thread that does nothing else, given up in time.

The deadline is counted from before each renewal, so it never lies behind the database's own.
When it comes near, or somebody else has the row, a job's trainer is told from here to drop it,
whatever the supervisor is waiting for.
"""

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, Protocol, Self

import structlog
from sqlalchemy.orm import Session

from core.database import Database
from core.errors import StaleFence, Unavailable
from models.tables import claims
from models.tables.comparison import Comparison
from models.tables.job import Job

TICK_SECONDS = 0.5

log = structlog.get_logger(__name__)


class Renew(Protocol):
    """Lengthens the lease of a row and returns its state; `StaleFence` if it is not ours."""

    def __call__(self, session: Session, row: Any, *, seconds: float) -> str:
        """Write the new end of the lease."""


class Lease:
    """Renews the lease of a row while the `with` block runs; `lost` says that it is gone."""

    def __init__(
        self,
        row: Job | Comparison,
        *,
        database: Database,
        seconds: float,
        renew: Renew = claims.renew,
    ) -> None:
        self.lost = Event()
        self.state = row.state
        self._row = row
        self._renew = renew
        self._database = database
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds - TICK_SECONDS
        self._done = Event()
        self._let_go: Callable[[], None] = lambda: None
        self._thread = Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def guard(self, let_go: Callable[[], None]) -> None:
        """Do this at once when the lease is lost; it must be quick and may not fail."""
        self._let_go = let_go

    def _keep(self) -> None:
        while not self.lost.is_set() and not self._done.wait(TICK_SECONDS):
            began = time.monotonic()
            try:
                with self._database.unit_of_work() as session:
                    self.state = self._renew(session, self._row, seconds=self._seconds)
                self._deadline = began + self._seconds - TICK_SECONDS
            except Unavailable:
                if time.monotonic() < self._deadline:
                    continue
                log.warning("the database was away for a whole lease", row=self._row.id)
                self._lose()
            except StaleFence:
                self._lose()

    def _lose(self) -> None:
        self.lost.set()
        self._let_go()
