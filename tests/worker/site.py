"""A worker as it runs in the field: a process of its own over a real database and store."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from core.database import Database
from core.store import Store
from models.tables import event, job
from models.tables.base import Page
from models.tables.job import Job
from tests.factories import make_job
from tests.processes import children, is_alive, wait_for

SECONDS = 60.0


class Site:
    """One installation: a data directory, a database, a store, and workers to start and kill."""

    def __init__(self, folder: Path, *, database_url: str, base: Path) -> None:
        """Take over a folder and a database, both empty; `base` is served as `tiny`."""
        (folder / "bases").mkdir()
        (folder / "bases" / "tiny").symlink_to(base)
        self.folder = folder
        self.database = Database(database_url)
        self.store = Store((folder / "store").as_uri())
        self._environment = {
            **os.environ,
            "GRAFTWORK_BASE": "tiny",
            "GRAFTWORK_BROKER_URL": f"redis+socket://{folder / 'nobody.sock'}",
            "GRAFTWORK_DATABASE_URL": database_url,
            "GRAFTWORK_DATA_DIR": str(folder),
            "GRAFTWORK_WORKER__LEASE_SECONDS": "4",
            "GRAFTWORK_WORKER__POLL_SECONDS": "0.2",
            "GRAFTWORK_WORKER__RESUME_SECONDS": "0.4",
            "OMP_NUM_THREADS": "1",
        }
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker; it has no broker, so it lives by what the table says."""
        with (self.folder / f"worker-{len(self._workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "worker"],
                env={**self._environment, **environment},
                stdout=log,
                stderr=log,
            )
        self._workers.append(worker)
        return worker

    def kill_workers(self) -> None:
        """Kill every worker and whatever it started."""
        for worker in self._workers:
            for pid in (*children(worker.pid), worker.pid):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            worker.wait()

    def close(self) -> None:
        """Leave nothing running."""
        self.kill_workers()
        self.database.close()

    def add_job(self, rows: list[dict[str, Any]] | bytes, **values: Any) -> Job:
        """Store rows and post a job on them."""
        path = self.folder / "rows.jsonl"
        path.write_bytes(
            rows
            if isinstance(rows, bytes)
            else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        )
        digest = self.store.put_file(path)
        with self.database.unit_of_work() as session:
            return make_job(session, training_digest=digest, **values)

    def job(self, row: Job) -> Job:
        """Read a job again."""
        with self.database.unit_of_work() as session:
            return job.get(session, row.id, tenant=row.tenant)

    def wait_for_step(self, row: Job, step: int) -> Job:
        """Wait until the job has come that far."""
        return wait_for(lambda: (now := self.job(row)).step >= step and now, seconds=SECONDS)

    def wait_for_state(self, row: Job, state: str) -> Job:
        """Wait until the job is in a state."""
        return wait_for(lambda: (now := self.job(row)).state == state and now, seconds=SECONDS)

    def events(self, row: Job) -> list[Any]:
        """Return the job's whole history, oldest first."""
        with self.database.unit_of_work() as session:
            page, _ = event.list_page(session, row.id, page=Page(10_000, ascending=True))
        return list(page)

    def steps_told(self, row: Job) -> list[int]:
        """Return the step numbers of the job's metrics events, in order."""
        return [item.data["step"] for item in self.events(row) if item.type == "metrics"]
