"""Our side of many small jobs: a database, a store, a broker, and a real worker that takes them.

All jobs wait in line, checked, before the worker starts; its start is a part of what is measured.
The settings come from `GRAFTWORK_*` variables, as everywhere.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select

from benchmarks.sides import JSON, serve
from cli import database as schema
from core.broker import find_broker, server_command
from core.database import Database
from core.ids import new_id
from core.process import child_environment, start_child
from core.settings import Settings, get_settings
from core.store import Store
from models.tables import job
from models.tables.event import Event
from models.tables.job import TERMINAL, Job
from worker.dispatch import Dispatcher

TENANT = "benchmark"
MOST_SECONDS = 1800.0
LOOK_SECONDS = 0.2
"""A look takes time from the jobs, and of a trainer whose threads wait for each other from all its
cores. What is measured is longer by up to one of these."""


class JobFailed(RuntimeError):
    """A job of the benchmark did not succeed."""


def answer(question: JSON) -> JSON:
    """Put jobs in line, start a worker, and return how long it took until all were published.

    `start_seconds` are those of the worker itself, until it claimed the first one.
    """
    settings = get_settings()
    database, store = Database(settings.database), Store(settings.store)
    try:
        ids = [
            _add(asked, settings=settings, database=database, store=store)
            for asked in question["jobs"]
        ]
        dispatcher = Dispatcher(settings)
        for job_id in ids:
            dispatcher.validate(job_id)
        began, clock = time.perf_counter(), time.time()
        with _worker(question["variables"], log=settings.data_folder / "worker.log"):
            rows = _wait(ids, database=database)
            seconds = time.perf_counter() - began
        return {
            "seconds": round(seconds, 2),
            "start_seconds": round(min(row.started_at or clock for row in rows) - clock, 2),
            "train_seconds": [(row.usage or {}).get("train_seconds") for row in rows],
            "tokens": [row.trained_tokens for row in rows],
            "losses": [_losses(job_id, database=database) for job_id in ids],
        }
    finally:
        database.close()


def _add(asked: JSON, *, settings: Settings, database: Database, store: Store) -> str:
    row = Job(
        id=new_id("ftjob"),
        tenant=TENANT,
        model=settings.base,
        base=settings.base,
        training_file=new_id("file"),
        training_digest=store.put_file(Path(asked["training_file"])),
        seed=asked["seed"],
        method=asked["method"],
        loop=asked["loop"],
        request_digest="0" * 64,
    )
    with database.unit_of_work() as session:
        return job.add(session, row).id


@contextmanager
def _worker(variables: dict[str, str], *, log: Path) -> Iterator[None]:
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "worker"],
            env=child_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def _wait(ids: list[str], *, database: Database) -> list[Job]:
    """Return the rows of jobs once all have succeeded."""
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        with database.reading() as session:
            states = session.scalars(select(Job.state).where(Job.id.in_(ids))).all()
        if all(state in TERMINAL for state in states):
            break
        time.sleep(LOOK_SECONDS)
    else:
        raise JobFailed(f"Not done after {MOST_SECONDS:.0f} s: {states}")
    with database.reading() as session:
        found = {row.id: row for row in session.scalars(select(Job).where(Job.id.in_(ids)))}
    if failed := [row for row in found.values() if row.state != "succeeded"]:
        raise JobFailed(f"{failed[0].state}: {failed[0].error}")
    return [found[job_id] for job_id in ids]


def _losses(job_id: str, *, database: Database) -> list[float]:
    query = select(Event).where(Event.job_id == job_id, Event.type == "metrics")
    with database.unit_of_work() as session:
        found = [row.data for row in session.scalars(query.order_by(Event.number))]
    return [data["train_loss"] for data in found if data and "train_loss" in data]


def main() -> None:
    """Prepare the database and the broker, and answer until the input ends."""
    settings = get_settings()
    schema.migrate(settings)
    broker = find_broker(settings)
    child = None
    if broker.server:
        command = server_command(broker.server, settings=settings)
        log = settings.data_folder / "broker.log"
        child = start_child([sys.executable, "-m", "cli.become", *command], log=log)
    try:
        serve(answer)
    finally:
        if child is not None:
            child.terminate()
            child.wait()


if __name__ == "__main__":
    os.umask(0o077)
    main()
