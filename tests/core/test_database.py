from contextlib import closing
from pathlib import Path

import pytest
from alembic.command import check, downgrade
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from core.database import IDLE_SECONDS, SAFE_WAL, Database, sqlite_module
from core.errors import DatabaseFull, Unavailable
from migrations import alembic_config, is_current, migrate
from models.tables import api_key, event, job
from models.tables.base import hold_writers
from models.tables.file import File
from tests.conftest import fresh_postgres
from tests.factories import make_job


def test_an_error_undoes_the_whole_unit_of_work(database: Database) -> None:
    def add_and_fail() -> None:
        with database.unit_of_work() as session:
            api_key.create(session, tenant="acme", name="x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_and_fail()
    with database.unit_of_work() as session:
        assert api_key.count(session) == 0


def test_migrations_and_tables_agree(database_url: str) -> None:
    check(alembic_config(database_url))
    database = Database(database_url)
    assert is_current(database.engine)
    database.close()


def test_migrations_go_down_and_up_again(database_url: str) -> None:
    downgrade(alembic_config(database_url), "base")
    database = Database(database_url)
    assert not is_current(database.engine)
    migrate(database_url)
    assert is_current(database.engine)
    database.close()


def test_tables_change_under_rows_that_have_children(database_url: str) -> None:
    database = Database(database_url)
    with database.unit_of_work() as session:
        made = make_job(session, step=3, total_steps=7).id
        event.add(session, made, message="Step 3.")
    database.close()
    downgrade(alembic_config(database_url), "0003")
    migrate(database_url)
    database = Database(database_url)
    with database.unit_of_work() as session:
        row = job.get(session, made, tenant="acme")
        assert (row.step, row.total_steps) == (3, 7)
        row.total_steps = 2**40
    with database.reading() as session:
        assert job.get(session, made, tenant="acme").total_steps == 2**40
    database.close()


def test_a_migration_that_leaves_rows_without_their_parents_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    url = f"sqlite:///{file}"
    migrate(url)
    with closing(sqlite_module().connect(file)) as connection:  # which looks at no references
        columns = "id, job_id, created_at, level, type, message"
        connection.execute(
            f"INSERT INTO events ({columns}) VALUES ('e', 'gone', 0, 'info', '', '')"
        )
        connection.commit()
    with pytest.raises(RuntimeError, match="parents"):
        downgrade(alembic_config(url), "0003")
    database = Database(url)
    assert is_current(database.engine)
    database.close()


def test_sqlite_waits_for_writers_and_never_loses_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('db') / 'x.db'}"
    migrate(url)
    database = Database(url)
    with database.engine.connect() as connection:
        journal = connection.execute(text("PRAGMA journal_mode")).scalar_one()
        synchronous = connection.execute(text("PRAGMA synchronous")).scalar_one()
    expected = "wal" if sqlite_module().sqlite_version_info >= SAFE_WAL else "delete"
    assert journal == expected
    assert synchronous == 2
    database.close()


def test_a_database_that_is_away_is_a_typed_error() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
    with pytest.raises(Unavailable) as caught, database.unit_of_work() as session:
        api_key.count(session)
    assert caught.value.code == "database_unavailable"
    database.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    migrate(url)
    return url


def test_a_full_disk_is_not_a_database_that_is_away(sqlite_url: str) -> None:
    database = Database(sqlite_url)

    def fill(session: Session) -> None:
        session.execute(text("PRAGMA max_page_count = 1"))  # no more than there are
        for number in range(1000):
            api_key.create(session, tenant="acme", name=f"{number:064}")
            session.flush()

    with pytest.raises(DatabaseFull), database.unit_of_work() as session:
        fill(session)
    with database.unit_of_work() as session:
        assert api_key.count(session) == 0
    database.close()


def test_a_statement_that_is_wrong_is_not_hidden(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with pytest.raises(OperationalError, match="no such table"), database.reading() as session:
        session.execute(text("SELECT * FROM nowhere"))
    database.close()


def test_a_sqlite_that_is_taken_or_cannot_be_opened_is_away(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.database.BUSY_SECONDS", 0.05)
    taken, folder = Database(sqlite_url), Database(f"sqlite:///{tmp_path}")
    with closing(sqlite_module().connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for database in (taken, folder):
            with pytest.raises(Unavailable) as caught, database.unit_of_work() as session:
                api_key.count(session)
            assert caught.value.code == "database_unavailable"
            database.close()


def test_who_is_silent_amid_a_transaction_is_hung_up_on(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_around(silent: Database, other: Database) -> None:
        with silent.unit_of_work() as session:
            api_key.create(session, tenant="acme", name="x", secret="same")
            session.flush()
            with other.unit_of_work() as waiting:  # for the other row of this secret to be gone
                api_key.create(waiting, tenant="acme", name="y", secret="same")
            api_key.count(session)

    for url in fresh_postgres(postgres_url):
        silent, other = Database(url), Database(url)
        with other.reading() as session:
            assert api_key.count(session) == 0
        monkeypatch.setattr("core.database.IDLE_SECONDS", 1)  # of connections from here on
        with pytest.raises(Unavailable) as caught:
            write_around(silent, other)
        assert caught.value.code == "database_unavailable"
        with silent.unit_of_work() as session:
            assert api_key.count(session) == 1
        silent.close()
        other.close()


def test_who_holds_off_writers_may_be_silent(postgres_url: str) -> None:
    limit = text("SHOW idle_in_transaction_session_timeout")
    for url in fresh_postgres(postgres_url):
        database = Database(url)
        with database.unit_of_work() as session:
            hold_writers(session, File)
            assert session.scalar(limit) == "0"
        with database.unit_of_work() as session:
            assert session.scalar(limit) == f"{IDLE_SECONDS}s"
        database.close()


def test_a_broken_constraint_is_not_hidden(database: Database) -> None:
    with database.unit_of_work() as session:
        api_key.create(session, tenant="acme", name="x", secret="same")
    with pytest.raises(IntegrityError), database.unit_of_work() as session:
        api_key.create(session, tenant="acme", name="y", secret="same")
