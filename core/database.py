"""The engine and the unit of work: the one place that commits.

Writers on SQLite begin with `BEGIN IMMEDIATE`, so a read never has to become a write under
contention, and run on a SQLite without the WAL-reset corruption bug (fixed in 3.51.3) or else
with the rollback journal (https://sqlite.org/wal.html#walresetbug).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from core.errors import DatabaseFull, GraftworkError, Unavailable
from core.queue import ring

SAFE_WAL = (3, 51, 3)
BUSY_SECONDS = 10
# A server that does not answer is given up well before a worker's lease (30 s) can end.
POSTGRES_PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
}
IDLE_SECONDS = 15
"""Amid a transaction. A client that is silent for longer, for its process is frozen or its machine
asleep, loses its locks: without this, nobody could take over what it was writing."""
READS = "graftwork_reads"
SQLITE_AWAY = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
)
"""What keeps SQLite from answering for now; its other codes, a full disk apart, are faults."""


def sqlite_module() -> ModuleType:
    """Return the newer of the standard library's SQLite and the wheel's."""
    try:
        from pysqlite3 import dbapi2
    except ImportError:
        return sqlite3
    wheel: ModuleType = dbapi2
    return wheel if wheel.sqlite_version_info > sqlite3.sqlite_version_info else sqlite3


def open_database(url: str) -> Engine:
    """Return an engine for `url`; SQLite gets its pragmas, PostgreSQL a checked pool.

    What rows hold is never part of an error: errors are logged.
    """
    parsed = make_url(url)
    return _open_sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _open_server(parsed)


def _open_server(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    patience = {key: POSTGRES_PATIENCE[key] for key in POSTGRES_PATIENCE.keys() - url.query}
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=20,
        connect_args=patience,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # Not among the options that a connection starts with, which PgBouncer refuses.
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
        connection.autocommit = False

    return engine


def _open_sqlite(url: URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    module = sqlite_module()
    engine = create_engine(
        url,
        module=module,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,
    )
    journal = "WAL" if module.sqlite_version_info >= SAFE_WAL else "DELETE"

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        reads = connection.get_execution_options().get(READS)
        connection.exec_driver_sql("BEGIN DEFERRED" if reads else "BEGIN IMMEDIATE")

    return engine


class Database:
    """One engine and its sessions; every process opens one."""

    def __init__(self, url: str) -> None:
        self.engine = open_database(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """Run one transaction: commit at the end, roll back on any error, then ring.

        Wake-ups that the transaction asked for are sent after the commit; workers find the rows
        of lost ones by themselves. A database that cannot be reached raises `Unavailable`, one
        whose disk is full `DatabaseFull`.
        """
        with self._transaction(self._sessions()) as session:
            yield session
        ring(session.info.pop("rings", []))

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give a session that only reads; on SQLite it waits for no writer."""
        connection = self.engine.execution_options(**{READS: True})
        with self._transaction(self._sessions(bind=connection)) as session:
            yield session

    @contextmanager
    def _transaction(self, opened: Session) -> Iterator[Session]:
        try:
            with opened as session, session.begin():
                yield session
        except (DBAPIError, PoolTimeout) as error:
            if (typed := _typed(error)) is None:
                raise
            raise typed from error

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _typed(error: DBAPIError | PoolTimeout) -> GraftworkError | None:
    """Return what a database's error is to us; None for a statement that is wrong."""
    code = _sqlite_code(error)
    if code == sqlite3.SQLITE_FULL:
        return DatabaseFull("There is no space left where the database lies.")
    if _is_away(error) if code is None else code in SQLITE_AWAY:
        return Unavailable(
            "The database does not answer; try again in a moment.", code="database_unavailable"
        )
    return None


def _sqlite_code(error: DBAPIError | PoolTimeout) -> int | None:
    """Return the primary result code if it is SQLite's: for it nearly all is "operational"."""
    if isinstance(error, PoolTimeout):
        return None
    extended: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _is_away(error: DBAPIError | PoolTimeout) -> bool:
    """Tell a server that cannot be reached, or that has hung up, from a statement that is wrong."""
    reaches_nobody = (OperationalError, InterfaceError, PoolTimeout)
    return isinstance(error, reaches_nobody) or error.connection_invalidated
