"""Which job this worker takes next: woken by messages, and by its own look at the table."""

import os
import socket
from collections.abc import Callable
from functools import cache, partial
from threading import Event, Semaphore, Thread

import structlog

from core.database import Database
from core.errors import StorageFull, Unavailable
from core.ids import random_letters
from core.settings import Settings, get_settings
from core.store import Store
from models.tables import claims, comparison_claims
from models.tables.comparison import Comparison
from models.tables.job import Job
from worker.collect import collect
from worker.compare.evaluate import Evaluation
from worker.lease import Leases
from worker.supervisor import Supervisor
from worker.validate import validate_files

COLLECT_SECONDS = 60.0

log = structlog.get_logger(__name__)


class Dispatcher:
    """The jobs of one worker process; all its threads are light, no torch is loaded here."""

    def __init__(self, settings: Settings) -> None:
        self.stopping = Event()
        self._settings = settings
        self._database = Database(settings.database)
        self._store = Store(settings.store)
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{random_letters(6)}"
        self._places = Semaphore(settings.worker.jobs)
        self._comparing = Semaphore(1)
        self._poller = Thread(target=self._poll, name="poller", daemon=True)
        self._helpers: list[Thread] = []

    def start(self) -> None:
        """Begin to look at the table."""
        self._poller.start()

    def stop(self) -> None:
        """Have running jobs saved and handed back, and wait until they are."""
        self.stopping.set()
        for thread in (self._poller, *self._helpers):
            thread.join(self._settings.worker.stop_seconds)
        self._database.close()

    def validate(self, job_id: str | None = None) -> None:
        """Check the files of one waiting job."""
        with self._database.unit_of_work() as session:
            row = claims.take(
                session,
                owner=self._owner,
                seconds=self._settings.worker.lease_seconds,
                state="validating_files",
                job_id=job_id,
            )
        if row is not None:
            with Leases(
                database=self._database, seconds=self._settings.worker.lease_seconds
            ) as leases:
                leases.hold(row)
                validate_files(
                    row, settings=self._settings, database=self._database, store=self._store
                )

    def train(self, job_id: str | None = None) -> None:
        """Train a queued job and its like, then the next, until there is none or no free place."""
        while not self.stopping.is_set() and self._places.acquire(blocking=False):
            try:
                with self._database.unit_of_work() as session:
                    rows = claims.take_gang(
                        session,
                        owner=self._owner,
                        seconds=self._settings.worker.lease_seconds,
                        most=self._settings.worker.gang,
                        job_id=job_id,
                    )
                if not rows:
                    return
                Supervisor(
                    rows,
                    settings=self._settings,
                    database=self._database,
                    store=self._store,
                    stopping=self.stopping,
                    claim_more=partial(self._take_more, rows[0]),
                ).run()
            finally:
                self._places.release()
            job_id = None

    def _take_more(self, first: Job, room: int) -> list[Job]:
        """Claim jobs that may join one that is being trained."""
        with self._database.unit_of_work() as session:
            more = claims.take_more(
                session,
                first,
                owner=self._owner,
                seconds=self._settings.worker.lease_seconds,
                most=room,
            )
            return list(more)

    def compare(self, comparison_id: str | None = None) -> None:
        """Evaluate a comparison whose jobs have ended, then the next, one at a time."""
        if self.stopping.is_set() or not self._comparing.acquire(blocking=False):
            return
        try:
            while (row := self._take_comparison(comparison_id)) is not None:
                Evaluation(
                    row,
                    settings=self._settings,
                    database=self._database,
                    store=self._store,
                    stopping=self.stopping,
                ).run()
                comparison_id = None
        finally:
            self._comparing.release()

    def _take_comparison(self, comparison_id: str | None) -> Comparison | None:
        if self.stopping.is_set():
            return None
        with self._database.unit_of_work() as session:
            return comparison_claims.take(
                session,
                owner=self._owner,
                seconds=self._settings.worker.lease_seconds,
                comparison_id=comparison_id,
            )

    def _poll(self) -> None:
        quiet = COLLECT_SECONDS
        while not self.stopping.wait(self._settings.worker.poll_seconds):
            quiet += self._settings.worker.poll_seconds
            try:
                self._look()
                if quiet >= COLLECT_SECONDS:
                    quiet = 0.0
                    collect(
                        database=self._database,
                        store=self._store,
                        work_folder=self._settings.work_folder,
                    )
            except (Unavailable, StorageFull) as error:
                log.warning("cannot look for work", reason=error.code)
            except Exception:
                log.exception("the look for work failed")

    def _look(self) -> None:
        """Take back what vanished workers held, and start what no message has announced."""
        grace = 2 * self._settings.worker.poll_seconds
        with self._database.unit_of_work() as session:
            claims.reclaim_expired(session, max_attempts=self._settings.worker.max_attempts)
            unchecked = claims.waiting(session, state="validating_files", older_than=grace)
            untrained = claims.waiting(session, state="queued", older_than=grace)
            unevaluated = comparison_claims.due(session)
        self._helpers = [thread for thread in self._helpers if thread.is_alive()]
        if unchecked and not self._is_busy("validator"):
            self._help(self.validate, name="validator")
        if untrained:
            self._help(self.train, name="trainer")
        if unevaluated and not self._is_busy("comparer"):
            self._help(self.compare, name="comparer")

    def _is_busy(self, name: str) -> bool:
        return any(thread.name == name for thread in self._helpers)

    def _help(self, work: Callable[[], None], *, name: str) -> None:
        thread = Thread(target=work, name=name, daemon=True)
        self._helpers.append(thread)
        thread.start()


@cache
def get_dispatcher() -> Dispatcher:
    """Return the dispatcher of this process."""
    return Dispatcher(get_settings())
