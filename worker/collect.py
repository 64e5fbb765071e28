"""Garbage: bytes that no row needs any more. Deleted means deleted."""

import shutil
from pathlib import Path

from core.database import Database
from core.store import Store
from models.tables import (
    adapter,
    checkpoint,
    claims,
    comparison,
    comparison_claims,
    file,
    job,
)
from models.tables.adapter import Adapter
from models.tables.base import hold_writers
from models.tables.checkpoint import Checkpoint
from models.tables.file import File

BATCH = 100
_HOLDERS = {"ftjob": claims.is_worked_on, "ftcmp": comparison_claims.is_worked_on}
"""By what their ids begin with, who says whether a claim still holds the row."""


def collect(*, database: Database, store: Store, work_folder: Path) -> None:
    """Remove what nobody needs any more, in the store and in the worker's own folder."""
    _collect_files(database, store)
    _collect_adapters(database, store)
    _collect_resumes(database, store)
    _collect_work(database, work_folder)


def _collect_files(database: Database, store: Store) -> None:
    """Remove deleted and expired files, but not what a job that has not ended needs.

    Rows go and bytes go in one transaction that holds off new files, so that an upload of equal
    bytes either keeps them or stores them again.
    """
    with database.unit_of_work() as session:
        file.expire(session)
        hold_writers(session, File)
        for gone in file.tombstones(session, limit=BATCH):
            if job.is_pinned(session, gone.digest) or comparison.is_pinned(session, gone.digest):
                continue
            session.delete(gone)
            session.flush()
            if not file.is_used(session, gone.digest):
                store.delete(gone.digest)


def _collect_adapters(database: Database, store: Store) -> None:
    """Remove deleted adapters and checkpoints, and trees that no living one of them has."""
    with database.unit_of_work() as session:
        hold_writers(session, Adapter)
        hold_writers(session, Checkpoint)
        gone: list[Adapter | Checkpoint] = [
            *adapter.tombstones(session, limit=BATCH),
            *checkpoint.tombstones(session, limit=BATCH),
        ]
        for dead in gone:
            if job.is_pinned(session, dead.digest):
                continue
            session.delete(dead)
            session.flush()
            if not (
                adapter.is_used(session, dead.digest) or checkpoint.is_used(session, dead.digest)
            ):
                store.delete_tree(dead.digest)


def _collect_resumes(database: Database, store: Store) -> None:
    """Remove what ended jobs, cancelled ones say, would have gone on from."""
    with database.unit_of_work() as session:
        digests = job.take_ended_resumes(session, limit=BATCH)
    for digest in digests:
        store.delete_tree(digest)


def _collect_work(database: Database, folder: Path) -> None:
    """Remove the folders that killed workers left behind."""
    for prefix, is_worked_on in _HOLDERS.items():
        for path in folder.glob(f"{prefix}-*-*"):
            row_id, _, fence = path.name.rpartition("-")
            with database.reading() as session:
                worked_on = is_worked_on(session, row_id, fence=int(fence))
            if not worked_on:
                shutil.rmtree(path, ignore_errors=True)
