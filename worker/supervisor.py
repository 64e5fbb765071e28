"""One claimed job from start to end: runs the trainer, keeps the lease, writes what it says.

The trainer is a fresh process that knows neither database nor store. It hears `pause` and `stop`
on its standard input and dies when that closes; it reports in JSON lines on its standard output.
Everything written here carries the job's fence.
"""

import shutil
import signal
import time
from queue import Empty
from threading import Event

import structlog

from core.database import Database
from core.errors import GraftworkError, StaleFence, StorageFull, Unavailable
from core.settings import Settings
from core.store import Store
from models.spec import Alive, AnyTrainerMessage, Failed, Stopped, Succeeded
from models.tables import claims
from models.tables.job import Job
from worker.lease import Lease
from worker.order import write_order
from worker.record import Recorder
from worker.trainer import Trainer

TICK_SECONDS = 0.5
FULL_DISK_SECONDS = 30.0
FINAL = (Succeeded, Failed, Stopped)

log = structlog.get_logger(__name__)


class Supervisor:
    """Watches the trainer of one job; `run` returns when the job is no longer this worker's."""

    def __init__(
        self, row: Job, *, settings: Settings, database: Database, store: Store, stopping: Event
    ) -> None:
        self._row = row
        self._settings = settings.worker
        self._database = database
        self._store = store
        self._stopping = stopping
        self._recorder = Recorder(row, database=database, store=store)
        self._folder = settings.data_folder / "work" / f"{row.id}-{row.fence}"
        self._base_folder = settings.base_folder
        self._cores_folder = settings.cores_folder
        self._lease = Lease(row, database=database, seconds=self._settings.lease_seconds)

    def run(self) -> None:
        """Train the job, or hand it back; never raises for anything that a job can meet."""
        structlog.contextvars.bind_contextvars(job=self._row.id, fence=self._row.fence)
        try:
            with self._lease:
                self._train_or_explain()
        except StaleFence:
            log.info("the job is no longer ours")
        except Unavailable as error:
            log.warning("gave the job up; its lease will end", reason=error.code)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            structlog.contextvars.unbind_contextvars("job", "fence")

    def _train_or_explain(self) -> None:
        """Train; end the job for a reason that no second try would change, else try again."""
        try:
            self._train()
        except (StaleFence, Unavailable):
            raise
        except (StorageFull, OSError) as error:
            log.warning("the disk failed", error=str(error))
            self._stopping.wait(FULL_DISK_SECONDS)
            self._retry("The worker could not write to its disk", code="storage_full")
        except GraftworkError as error:
            log.warning("the job failed", code=error.code, reason=error.message)
            with self._database.unit_of_work() as session:
                claims.fail(session, self._row, code=error.code, message=error.message)
        except Exception:
            log.exception("a bug of the supervisor")
            self._retry("The worker met an unexpected error")

    def _train(self) -> None:
        write_order(
            self._row,
            folder=self._folder,
            base_folder=self._base_folder,
            store=self._store,
            settings=self._settings,
        )
        trainer = Trainer(self._folder, cores_folder=self._cores_folder)
        self._lease.guard(trainer.process)
        try:
            final = self._watch(trainer)
        finally:
            code = trainer.end()
        if final is None:
            log.warning("the trainer died", code=code, last_words=trainer.last_words())
            how = signal.Signals(-code).name if code < 0 else f"exit {code}"
            self._retry(f"The training process ended without a result ({how})")

    def _watch(self, trainer: Trainer) -> AnyTrainerMessage | None:
        """Pass messages and wishes on until the trainer has ended; return its last word."""
        heard = time.monotonic()
        while True:
            if self._lease.state == "pausing":
                trainer.tell("pause")
            elif self._stopping.is_set():
                trainer.tell("stop")
            try:
                message = trainer.messages.get(timeout=TICK_SECONDS)
            except Empty:
                if time.monotonic() - heard > self._settings.stall_seconds:
                    log.warning("no word from the trainer", seconds=self._settings.stall_seconds)
                    return None
                continue
            heard = time.monotonic()
            if message is None:
                return None
            if not isinstance(message, Alive):
                self._record(message)
            if isinstance(message, FINAL):
                return message

    def _record(self, message: AnyTrainerMessage) -> None:
        """Write a message down; while the database or store is away, try until the lease ends."""
        while True:
            if self._lease.lost.is_set():
                raise StaleFence("The lease was lost.")
            try:
                return self._recorder.record(message)
            except Unavailable:
                time.sleep(TICK_SECONDS)

    def _retry(self, reason: str, *, code: str = "too_many_attempts") -> None:
        with self._database.unit_of_work() as session:
            claims.retry(
                session,
                self._row,
                max_attempts=self._settings.max_attempts,
                reason=reason,
                code=code,
            )
