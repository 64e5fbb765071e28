"""One job in a worker's hands: what its trainer says of it decides where it goes next."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.database import Database
from core.settings import Settings
from core.store import Store
from models.spec import Broke
from models.tables import claims, event, job
from models.tables.base import Page
from models.tables.job import Job
from tests.factories import make_queued_job
from worker.claimed_job import ClaimedJob
from worker.lease import Leases


@pytest.fixture
def claimed(database: Database, store: Store, tmp_path: Path) -> Iterator[ClaimedJob]:
    with database.unit_of_work() as session:
        make_queued_job(session, gang="tiny")
    with database.unit_of_work() as session:
        row = claims.take(session, owner="w", seconds=30, state="queued")
    assert row is not None
    settings = Settings(data_dir=tmp_path)
    with Leases(database=database, seconds=30) as leases:
        yield ClaimedJob(row, settings=settings, database=database, store=store, leases=leases)


@pytest.fixture
def now(database: Database, claimed: ClaimedJob) -> Callable[[], Job]:
    """The job's row as it is."""

    def read() -> Job:
        with database.reading() as session:
            return job.get(session, claimed.row.id, tenant=claimed.row.tenant)

    return read


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "could not write to its disk"),
        (OSError(errno.EROFS, "Read-only file system"), "met an unexpected error"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "met an unexpected error"),
    ],
)
def test_an_error_is_called_a_full_disk_only_if_it_is_one_and_not_met_again_at_once(
    claimed: ClaimedJob, database: Database, now: Callable[[], Job], error: OSError, said: str
) -> None:
    def fail() -> None:
        raise error

    claimed.attempt(fail)
    with database.reading() as session:
        (last,), _ = event.list_page(session, claimed.row.id, page=Page(limit=1))
    assert said in last.message
    assert now().state == "queued"
    assert now().lease_until is not None


@pytest.mark.parametrize("alone", [False, True])
def test_a_job_that_broke_is_in_line_again_and_alone_if_its_trainer_says_so(
    claimed: ClaimedJob, now: Callable[[], Job], alone: bool
) -> None:
    claimed.hear(Broke(reason="No luck", alone=alone))
    assert claimed.is_over
    assert (now().state, now().gang) == ("queued", None if alone else "tiny")
    assert now().lease_until is None
