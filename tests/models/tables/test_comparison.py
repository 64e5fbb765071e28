"""Comparisons beside workers that write at the same time, as only PostgreSQL lets them."""

import pytest

from core.database import Database
from core.errors import InvalidRequest
from models.tables import claims, comparison, job
from models.tables.job import Job
from tests.factories import make_comparison, make_queued_job


@pytest.fixture
def running(postgres: Database) -> Job:
    """A job of the comparison `c` that a worker trains."""
    with postgres.unit_of_work() as session:
        make_comparison(session, id="c")
        make_queued_job(session, comparison_id="c")
    with postgres.unit_of_work() as session:
        taken = claims.take(session, owner="w", seconds=30, state="queued")
    assert taken is not None
    return taken


def test_a_job_that_has_just_succeeded_stays_so(postgres: Database, running: Job) -> None:
    with postgres.unit_of_work() as session:
        assert [one.state for one in comparison.list_jobs(session, "c")] == ["running"]
        with postgres.unit_of_work() as worker:
            claims.finish(worker, running, state="succeeded")
        assert comparison.cancel(session, "c", tenant="acme").state == "cancelled"
    with postgres.reading() as session:
        assert job.get(session, running.id, tenant="acme").state == "succeeded"


def test_who_saw_a_job_run_cannot_cancel_it_once_it_has_ended(
    postgres: Database, running: Job
) -> None:
    def look_and_cancel() -> None:
        with postgres.unit_of_work() as session:
            assert job.get(session, running.id, tenant="acme").state == "running"
            with postgres.unit_of_work() as worker:
                claims.finish(worker, running, state="succeeded")
            job.cancel(session, running.id, tenant="acme")

    with pytest.raises(InvalidRequest, match="succeeded"):
        look_and_cancel()
