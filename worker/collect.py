"""Garbage: bytes that no row needs any more. Deleted means deleted."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from core.database import Database
from core.errors import Unavailable
from core.store import Store
from models.tables import claims, comparison, comparison_claims, file, job
from models.tables.adapter import Adapter
from models.tables.base import dead_digests
from models.tables.checkpoint import Checkpoint
from models.tables.file import File
from worker.unused import remove_file, remove_tree

BATCH = 100
_HOLDERS = {"ftjob": claims.is_worked_on, "ftcmp": comparison_claims.is_worked_on}
"""By what their ids begin with, who says whether a claim still holds the row."""

log = structlog.get_logger(__name__)


def collect(*, database: Database, store: Store, work_folder: Path) -> None:
    """Remove what nobody needs any more, in the store and in the worker's own folder."""
    _collect_work(database, work_folder)
    for remove in (_collect_files, _collect_adapters, _collect_resumes):
        try:
            remove(database, store)
        except Unavailable:
            raise
        except Exception:
            log.exception("a part of the collection failed", part=remove.__name__)


@contextmanager
def _apart(digest: str, store: Store) -> Iterator[None]:
    """Log what goes wrong with one thing and go on to the next, unless it goes wrong with all."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Unavailable) and error.code == "database_unavailable":
            raise
        log.exception("could not be removed; the next round tries again", digest=digest)
        store.check()


def _collect_files(database: Database, store: Store) -> None:
    """Remove deleted and expired files, but not what a job that has not ended needs."""
    with database.unit_of_work() as session:
        file.expire(session)
        pinned = (job.pinned_digests(), comparison.pinned_digests())
        digests = dead_digests(session, File, pinned=pinned, limit=BATCH)
    for digest in digests:
        with _apart(digest, store):
            remove_file(digest, database=database, store=store)


def _collect_adapters(database: Database, store: Store) -> None:
    """Remove deleted adapters and checkpoints, and trees that no living one of them has."""
    with database.reading() as session:
        pinned = (job.pinned_digests(),)
        digests = [
            *dead_digests(session, Adapter, pinned=pinned, limit=BATCH),
            *dead_digests(session, Checkpoint, pinned=pinned, limit=BATCH),
        ]
    for digest in digests:
        with _apart(digest, store):
            remove_tree(digest, database=database, store=store)


def _collect_resumes(database: Database, store: Store) -> None:
    """Remove what ended jobs would have gone on from.

    The bytes go first: nobody would find them where they are, once their row does not say so.
    """
    with database.reading() as session:
        resumes = job.ended_resumes(session, limit=BATCH)
    for job_id, digest in resumes:
        with _apart(digest, store):
            store.delete_tree(digest)
            with database.unit_of_work() as session:
                job.forget_resume(session, job_id)


def _collect_work(database: Database, folder: Path) -> None:
    """Remove the folders that killed workers left behind."""
    for prefix, is_worked_on in _HOLDERS.items():
        for path in folder.glob(f"{prefix}-*-*"):
            row_id, _, fence = path.name.rpartition("-")
            with database.reading() as session:
                worked_on = is_worked_on(session, row_id, fence=int(fence))
            if not worked_on:
                shutil.rmtree(path, ignore_errors=True)
