"""Bytes go, but not those that a row still needs.

Rows go and bytes go in one transaction that holds off new rows, so that whoever stores equal bytes
either keeps them or stores them again.
"""

from core.database import Database
from core.store import Store
from models.tables import adapter, checkpoint, comparison, file, job
from models.tables.adapter import Adapter
from models.tables.base import forget_dead, hold_writers
from models.tables.checkpoint import Checkpoint
from models.tables.file import File


def remove_file(digest: str, *, database: Database, store: Store) -> None:
    """Remove a blob that no living file has, and that no job or comparison needs."""
    with database.unit_of_work() as session:
        hold_writers(session, File)
        if job.is_pinned(session, digest) or comparison.is_pinned(session, digest):
            return
        forget_dead(session, File, digest)
        if not file.is_used(session, digest):
            store.delete(digest)


def remove_tree(digest: str, *, database: Database, store: Store) -> None:
    """Remove a tree that no living adapter or checkpoint has, and that no job needs."""
    with database.unit_of_work() as session:
        hold_writers(session, Adapter)
        hold_writers(session, Checkpoint)
        if job.is_pinned(session, digest):
            return
        forget_dead(session, Adapter, digest)
        forget_dead(session, Checkpoint, digest)
        if not (adapter.is_used(session, digest) or checkpoint.is_used(session, digest)):
            store.delete_tree(digest)


def remove_resume(digest: str, *, job_id: str, database: Database, store: Store) -> None:
    """Remove what a job was to go on from, unless it is; no other job has an equal one."""
    with database.reading() as session:
        is_used = job.goes_on_from(session, job_id, digest)
    if not is_used:
        store.delete_tree(digest)
