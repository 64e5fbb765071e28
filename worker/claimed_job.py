"""One claimed job while a worker has it: its lease, its folder, and what becomes of it.

Everything written here carries the job's fence, and nothing that happens to one job is raised:
what a job can meet ends it, or puts it back in line, and leaves its neighbours alone.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from core.database import Database
from core.errors import DatabaseFull, GraftworkError, StaleFence, StorageFull, Unavailable
from core.settings import Settings
from core.store import Store, full_disk
from models.spec import FINAL, Alive, AnyTrainerMessage, Broke
from models.tables import claims
from models.tables.job import Job
from worker.lease import TICK_SECONDS, Leases
from worker.order import write_order
from worker.record import Recorder

FIRST_WAIT_SECONDS = 30.0
"""Before another try after a fault of the worker or the store, which would soon be met again."""

log = structlog.get_logger(__name__)


class ClaimedJob:
    """A job that this worker holds until `is_over`; close it then."""

    def __init__(
        self,
        row: Job,
        *,
        settings: Settings,
        database: Database,
        store: Store,
        leases: Leases,
    ) -> None:
        self.row = row
        self.order = f"{row.id}-{row.fence}"
        """What the trainer calls it: each claim has a name of its own."""
        self.is_over = False
        self._settings = settings.worker
        self._base_folder = settings.folder_of(row.base)
        self._database = database
        self._store = store
        self._recorder = Recorder(row, database=database, store=store)
        self._folder = settings.work_folder / self.order
        self._leases = leases
        self.lease = leases.hold(row)

    def close(self) -> None:
        """Let the lease end and remove the folder."""
        self._leases.release(self.lease)
        shutil.rmtree(self._folder, ignore_errors=True)

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something for this job; if that ends it for this worker, it is over."""
        with structlog.contextvars.bound_contextvars(job=self.row.id, fence=self.row.fence):
            try:
                self._do_or_explain(work)
            except StaleFence:
                log.info("the job is no longer ours")
                self.is_over = True
            except (Unavailable, StorageFull) as error:
                log.warning("gave the job up; its lease will end", reason=error.code)
                self.is_over = True

    def write_order(self) -> Path:
        """Write the job's order for a trainer; return its folder."""
        write_order(
            self.row,
            folder=self._folder,
            base_folder=self._base_folder,
            store=self._store,
            settings=self._settings,
        )
        return self._folder

    def hear(self, message: AnyTrainerMessage) -> None:
        """Write down what the trainer says of this job."""
        if isinstance(message, Broke):
            self.retry(message.reason, code=message.code, alone=message.alone)
        elif not isinstance(message, Alive):
            self.attempt(lambda: self._record(message))
            self.is_over = self.is_over or isinstance(message, FINAL)

    def retry(self, reason: str, *, code: str = "too_many_attempts", alone: bool = False) -> None:
        """Put the job back in line after a fault of the machinery, or fail it after too many."""
        self.attempt(lambda: self._retry(reason, code=code, alone=alone))

    def _do_or_explain(self, work: Callable[[], None]) -> None:
        """Do it; end the job for a reason that no second try would change, else try again."""
        try:
            with full_disk():
                work()
        except (StaleFence, Unavailable):
            raise
        except StorageFull as error:
            log.warning("the disk failed", error=str(error))
            self._retry("The worker could not write to its disk", code="storage_full")
        except GraftworkError as error:
            log.warning("the job failed", code=error.code, reason=error.message)
            self.is_over = True
            with self._database.unit_of_work() as session:
                claims.fail(session, self.row, code=error.code, message=error.message)
        except Exception:
            log.exception("a bug of the supervisor")
            self._retry("The worker met an unexpected error", waits=True)

    def _record(self, message: AnyTrainerMessage) -> None:
        """Write a message down; while the database or store is away, try until the lease ends.

        So also while the database finds no room, unless it may be bytes of this message that take
        it up: they are gone then, and the job is tried again later.
        """
        while True:
            if self.lease.lost.is_set():
                self._recorder.take_back()
                raise StaleFence("The lease was lost.")
            try:
                self._recorder.record(message)
            except (Unavailable, DatabaseFull):
                self._recorder.may_have_told = True
                time.sleep(TICK_SECONDS)
            else:
                self._recorder.may_have_told = False
                return

    def _retry(
        self,
        reason: str,
        *,
        code: str = "too_many_attempts",
        alone: bool = False,
        waits: bool = False,
    ) -> None:
        self.is_over = True
        patience = FIRST_WAIT_SECONDS * 2 ** (self.row.attempts - 1)
        with self._database.unit_of_work() as session:
            claims.retry(
                session,
                self.row,
                max_attempts=self._settings.max_attempts,
                reason=reason,
                code=code,
                wait_seconds=patience if waits or code == "storage_full" else 0.0,
                alone=alone,
            )
