"""Garbage: bytes that no row needs any more. Deleted means deleted."""

from core.database import Database
from core.store import Store
from models.tables import adapter, checkpoint, file, job

BATCH = 100


def collect(*, database: Database, store: Store) -> None:
    """Remove the bytes of deleted and expired files and of deleted adapters.

    What a job that has not ended needs stays until it has. Rows go and bytes go in one
    transaction that holds off new files, so that an upload of equal bytes either keeps them or
    stores them again.
    """
    with database.unit_of_work() as session:
        file.expire(session)
        file.hold_writers(session)
        for gone in file.tombstones(session, limit=BATCH):
            if job.is_pinned(session, gone.digest):
                continue
            session.delete(gone)
            session.flush()
            if not file.is_used(session, gone.digest):
                store.delete(gone.digest)
    with database.unit_of_work() as session:
        for dead in adapter.tombstones(session, limit=BATCH):
            if job.is_pinned(session, dead.digest):
                continue
            session.delete(dead)
            session.flush()
            if not (
                adapter.is_used(session, dead.digest) or checkpoint.is_used(session, dead.digest)
            ):
                store.delete_tree(dead.digest)
