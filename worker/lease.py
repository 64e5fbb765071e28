"""A worker's hold on rows: kept by a thread that does nothing else, given up in time.

The rows of one holder are renewed in one transaction, however many they are. A deadline is counted
from before each renewal, and the first one as if half of the lease were over, so it does not lie
behind the database's own. When it comes near, or somebody else has a row, a job's trainer is told
from here to drop it, whatever the supervisor is waiting for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Lock, Thread
from typing import Protocol, Self

import structlog
from sqlalchemy.orm import Session

from core.database import Database
from core.errors import StorageFull, Unavailable
from models.tables import claims
from models.tables.base import Claim, Held
from models.tables.comparison import Comparison
from models.tables.job import Job

TICK_SECONDS = 0.5

log = structlog.get_logger(__name__)


class Renew(Protocol):
    """Lengthens the leases of claims; returns those that are still ours."""

    def __call__(
        self, session: Session, claims: Sequence[Claim], *, seconds: float
    ) -> Mapping[Claim, Held]:
        """Write the new end of the leases."""


class Lease:
    """The hold on one row; `lost` says that it is gone."""

    def __init__(self, row: Job | Comparison, *, deadline: float) -> None:
        self.claim: Claim = (row.id, row.fence)
        self.lost = Event()
        self.state = row.state
        self.deadline = deadline
        """On the monotonic clock, when it is lost for certain."""
        self._let_go: Callable[[], None] = lambda: None

    def guard(self, let_go: Callable[[], None]) -> None:
        """Do this at once when the lease is lost; it must be quick and may not fail."""
        self._let_go = let_go

    def lose(self) -> None:
        """Say that it is gone."""
        self.lost.set()
        self._let_go()


class Leases:
    """Renews the leases of rows while the `with` block runs."""

    def __init__(self, *, database: Database, seconds: float, renew: Renew = claims.renew) -> None:
        self._database = database
        self._seconds = seconds
        self._renew = renew
        self._held: list[Lease] = []
        self._holding = Lock()
        self._done = Event()
        self._thread = Thread(target=self._keep, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def hold(self, row: Job | Comparison) -> Lease:
        """Keep a row that was taken just now, at most half a lease ago."""
        lease = Lease(row, deadline=self._end_from(time.monotonic() - self._seconds / 2))
        with self._holding:
            self._held.append(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """Keep a row no longer; a renewal that has begun may still find that it is gone."""
        with self._holding:
            if lease in self._held:
                self._held.remove(lease)

    def _keep(self) -> None:
        while not self._done.wait(TICK_SECONDS):
            with self._holding:
                held = list(self._held)
            if held:
                self._lengthen(held)

    def _lengthen(self, held: Sequence[Lease]) -> None:
        began = time.monotonic()
        found = self._ask(held)
        for lease in held:
            if (now := found.get(lease.claim)) is None:
                self._lose(lease)
                continue
            lease.state = now.state
            if now.renewed:
                lease.deadline = self._end_from(began)
            elif time.monotonic() >= lease.deadline:
                log.warning("a lease could not be renewed in time", claim=lease.claim)
                self._lose(lease)

    def _ask(self, held: Sequence[Lease]) -> Mapping[Claim, Held]:
        """Renew leases; where nothing can be learnt of them now, all are as they were."""
        try:
            with self._database.unit_of_work() as session:
                claimed = [lease.claim for lease in held]
                return self._renew(session, claimed, seconds=self._seconds)
        except (Unavailable, StorageFull) as error:
            log.warning("cannot renew leases", reason=error.code)
        except Exception:
            log.exception("a bug of the renewal of leases")
        return {lease.claim: Held(lease.state, renewed=False) for lease in held}

    def _lose(self, lease: Lease) -> None:
        self.release(lease)
        lease.lose()

    def _end_from(self, began: float) -> float:
        return began + self._seconds - TICK_SECONDS
