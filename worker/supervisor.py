"""The jobs of one trainer from claim to end: starts it, passes wishes down and messages on.

The trainer is a fresh process that knows neither database nor store. It hears on its standard
input in which folders orders lie, and `pause`, `stop` and `drop` for one job at a time, and dies
when that closes; it reports in JSON lines on its standard output. Nothing that happens to one of
its jobs happens to another, but for its death, which costs each the time since its checkpoint.
"""

import signal
import time
from collections.abc import Callable, Sequence
from queue import Empty
from threading import Event

import structlog

from core.database import Database
from core.errors import StaleFence, StorageFull, Unavailable
from core.settings import Settings
from core.store import Store
from models.tables.job import Job
from worker.claimed_job import ClaimedJob
from worker.lease import TICK_SECONDS, Leases
from worker.trainer import Trainer

log = structlog.get_logger(__name__)

ClaimMore = Callable[[int], Sequence[Job]]
"""Claims up to so many jobs that may join."""


class Supervisor:
    """Watches the trainer of a gang; `run` returns when no job of it is this worker's any more."""

    def __init__(
        self,
        rows: Sequence[Job],
        *,
        settings: Settings,
        database: Database,
        store: Store,
        stopping: Event,
        claim_more: ClaimMore = lambda _: (),
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._stopping = stopping
        self._claim_more = claim_more
        self._leases = Leases(database=database, seconds=settings.worker.lease_seconds)
        self._looked_at = time.monotonic()
        self._heard_at = time.monotonic()
        self._trainer: Trainer | None = None
        self._jobs: dict[str, ClaimedJob] = {}
        for row in rows:
            self._hold(row)

    def run(self) -> None:
        """Train the jobs, or hand them back; never raises for anything that a job can meet."""
        with self._leases:
            self._train()

    def _train(self) -> None:
        try:
            for job in list(self._jobs.values()):
                self._enlist(job)
            while self._jobs:
                self._let_join()
                self._pass_wishes()
                self._hear()
        finally:
            if self._trainer is not None:
                self._trainer.end()
            for job in self._jobs.values():
                job.close()

    def _hold(self, row: Job) -> ClaimedJob:
        job = ClaimedJob(
            row,
            settings=self._settings,
            database=self._database,
            store=self._store,
            leases=self._leases,
        )
        self._jobs[job.order] = job
        return job

    def _enlist(self, job: ClaimedJob) -> None:
        """Have a job trained, by the trainer that is there or by a new one."""

        def order() -> None:
            # It starts before the files are fetched: it has libraries to load meanwhile.
            trainer = self._trainer = self._trainer or self._start()
            trainer.train(job.write_order())
            # Only now: of an order that it was not given, the trainer hears nothing.
            job.lease.guard(lambda: trainer.ask("drop", job.order))

        job.attempt(order)
        self._release_if_over(job)

    def _start(self) -> Trainer:
        settings = self._settings
        return Trainer(settings.work_folder, cores_folder=settings.cores_folder)

    def _let_join(self) -> None:
        """Look from time to time for jobs in line that may join."""
        poll_seconds = self._settings.worker.poll_seconds
        room = self._settings.worker.gang - len(self._jobs)
        if not room or time.monotonic() - self._looked_at < poll_seconds or self._stopping.is_set():
            return
        try:
            rows = self._claim_more(room)
        except (Unavailable, StorageFull) as error:
            log.warning("cannot look for jobs that may join", reason=error.code)
            rows = ()
        self._looked_at = time.monotonic()
        for row in rows:
            self._enlist(self._hold(row))

    def _pass_wishes(self) -> None:
        for job in list(self._jobs.values()):
            if job.lease.lost.is_set():
                job.attempt(_say_lost)
                self._release_if_over(job)
            elif self._trainer is not None and job.lease.state == "pausing":
                self._trainer.ask("pause", job.order)
            elif self._trainer is not None and self._stopping.is_set():
                self._trainer.ask("stop", job.order)

    def _hear(self) -> None:
        """Wait a little for a message, and write it down."""
        if self._trainer is None:
            return
        try:
            said = self._trainer.messages.get(timeout=TICK_SECONDS)
        except Empty:
            if time.monotonic() - self._heard_at > self._settings.worker.stall_seconds:
                log.warning("no word from the trainer")
                self._bury(self._trainer)
            return
        self._heard_at = time.monotonic()
        if said is None:
            self._bury(self._trainer)
        elif (job := self._jobs.get(said.order)) is not None:
            job.hear(said.message)
            self._release_if_over(job)

    def _bury(self, trainer: Trainer) -> None:
        """Put every job of a trainer that died, or is as good as dead, back in line."""
        code = trainer.end()
        self._trainer = None
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        log.warning("the trainer died", code=code, last_words=trainer.last_words())
        for job in list(self._jobs.values()):
            job.retry(f"The training process ended without a result ({how})")
            job.is_over = True
            self._release_if_over(job)

    def _release_if_over(self, job: ClaimedJob) -> None:
        """Forget a job that is over, and let the trainer forget it."""
        if not job.is_over:
            return
        if self._trainer is not None:
            self._trainer.forget(job.order)
        del self._jobs[job.order]
        job.close()


def _say_lost() -> None:
    raise StaleFence("The lease was lost.")
