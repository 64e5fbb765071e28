"""Garbage: bytes that no row needs any more. Deleted means deleted."""

from core.database import Database
from core.store import Store
from models.tables import adapter, checkpoint, file, job

BATCH = 100


def collect(*, database: Database, store: Store) -> None:
    """Remove the blobs of deleted and expired files and of deleted adapters.

    Rows go and bytes go in one transaction that holds off new files, so that an upload of equal
    bytes either keeps them or stores them again.
    """
    with database.unit_of_work() as session:
        file.expire(session)
        file.hold_writers(session)
        for row in file.tombstones(session, limit=BATCH):
            if job.is_pinned(session, row.digest):
                continue
            session.delete(row)
            session.flush()
            if not file.is_used(session, row.digest):
                store.delete(row.digest)
    with database.unit_of_work() as session:
        for digest in adapter.take_dead_trees(session, limit=BATCH):
            if not checkpoint.is_used(session, digest):
                store.delete_tree(digest)
