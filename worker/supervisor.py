"""One claimed job from start to end: runs the trainer, keeps the lease, writes what it says.

The trainer is a fresh process that knows neither database nor store. It hears `pause`, `stop`
and `cancel` on its standard input and dies when that closes; it reports in JSON lines on its
standard output. Everything written here carries the job's fence.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import Popen
from threading import Event, Thread

import msgspec
import structlog

from core.database import Database
from core.errors import GraftworkError, StaleFence, StorageFull, Unavailable
from core.settings import Settings
from core.store import Store
from models.spec import Alive, AnyTrainerMessage, Failed, Stopped, Succeeded
from models.tables import job
from models.tables.job import Job
from worker.order import write_order
from worker.record import Recorder

TICK_SECONDS = 0.5
FINAL = (Succeeded, Failed, Stopped)

log = structlog.get_logger(__name__)
_decoder = msgspec.json.Decoder(AnyTrainerMessage)


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
        self._messages: SimpleQueue[AnyTrainerMessage | None] = SimpleQueue()
        self._lease_ends = time.monotonic() + self._settings.lease_seconds
        self._said: str | None = None

    def run(self) -> None:
        """Train the job, or hand it back; never raises for anything that a job can meet."""
        structlog.contextvars.bind_contextvars(job=self._row.id, fence=self._row.fence)
        try:
            self._train()
        except StaleFence:
            log.info("the job is no longer ours")
        except Unavailable as error:
            log.warning("gave the job up; its lease will end", reason=error.code)
        except GraftworkError as error:
            self._give_up(error)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            structlog.contextvars.unbind_contextvars("job", "fence")

    def _train(self) -> None:
        write_order(
            self._row,
            folder=self._folder,
            base_folder=self._base_folder,
            store=self._store,
            settings=self._settings,
        )
        child = self._start()
        reader = Thread(target=self._read, args=(child,), name="reader", daemon=True)
        reader.start()
        try:
            final = self._watch(child)
        finally:
            _kill(child)
            reader.join()
        if final is None:
            self._crashed(child.returncode)

    def _start(self) -> Popen[bytes]:
        with (self._folder / "trainer.log").open("wb") as log_file:
            return Popen(
                [sys.executable, "-m", "worker.train.run", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )

    def _read(self, child: Popen[bytes]) -> None:
        """Hand over each line; a line that is no message is the trainer's own bug: log it."""
        assert child.stdout is not None  # noqa: S101 - we asked for the pipe
        for line in child.stdout:
            try:
                self._messages.put(_decoder.decode(line))
            except msgspec.MsgspecError:
                log.warning("not a trainer message", line=line[:200].decode(errors="replace"))
        self._messages.put(None)

    def _watch(self, child: Popen[bytes]) -> AnyTrainerMessage | None:
        """Pass messages on and keep the lease until the trainer has ended; return its last word."""
        heard = time.monotonic()
        next_tick = 0.0
        while True:
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_SECONDS
                self._tick(child)
            try:
                message = self._messages.get(timeout=TICK_SECONDS)
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

    def _tick(self, child: Popen[bytes]) -> None:
        """Renew the lease, hear what people wish, and stop in time when the database is away."""
        try:
            with self._database.unit_of_work() as session:
                state = job.renew(session, self._row, seconds=self._settings.lease_seconds)
            self._lease_ends = time.monotonic() + self._settings.lease_seconds
        except Unavailable:
            self._check_lease()
            return
        if state == "pausing":
            self._say(child, "pause")
        elif self._stopping.is_set():
            self._say(child, "stop")

    def _check_lease(self) -> None:
        if time.monotonic() > self._lease_ends - 2 * TICK_SECONDS:
            raise Unavailable("The database was away for a whole lease.", code="lease_lost")

    def _say(self, child: Popen[bytes], command: str) -> None:
        if self._said is None and child.stdin is not None:
            self._said = command
            try:
                child.stdin.write(f"{command}\n".encode())
                child.stdin.flush()
            except BrokenPipeError:
                log.info("the trainer ended before it heard", command=command)

    def _record(self, message: AnyTrainerMessage) -> None:
        """Write a message down; while the database is away, try until the lease ends."""
        while True:
            try:
                self._recorder.record(message)
            except Unavailable:
                self._check_lease()
                time.sleep(TICK_SECONDS)
            else:
                return

    def _crashed(self, code: int | None) -> None:
        """Try again, not for ever: an end without a last word is a fault of the machinery."""
        log.warning("the trainer died", code=code, tail=_tail(self._folder / "trainer.log"))
        reason = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
        with self._database.unit_of_work() as session:
            job.retry(
                session,
                self._row,
                max_attempts=self._settings.max_attempts,
                reason=f"The training process ended without a result ({reason})",
            )

    def _give_up(self, error: GraftworkError) -> None:
        """End the job for a typed reason that no second try would change."""
        log.warning("the job failed", code=error.code, reason=error.message)
        try:
            with self._database.unit_of_work() as session:
                if isinstance(error, StorageFull):
                    job.retry(
                        session,
                        self._row,
                        max_attempts=self._settings.max_attempts,
                        reason="The disk is full",
                    )
                else:
                    job.fail(session, self._row, code=error.code, message=error.message)
        except (StaleFence, Unavailable):
            log.info("could not say so; the lease will end")


def _kill(child: Popen[bytes]) -> None:
    """End the trainer's whole process group, politely only in that its input closes first."""
    if child.stdin is not None:
        with suppress(BrokenPipeError):
            child.stdin.close()
    try:
        child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _tail(path: Path, *, size: int = 2000) -> str:
    try:
        return path.read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""
