from concurrent.futures import ThreadPoolExecutor

import pytest

from core.database import Database
from core.errors import InvalidRequest, NotFound, StaleFence
from models.tables import claims, event, job
from models.tables.base import Page
from models.tables.job import Job
from tests.factories import make_job, make_queued_job


def claim(database: Database, *, owner: str = "w1", seconds: float = 30.0) -> Job | None:
    with database.unit_of_work() as session:
        return claims.take(session, owner=owner, seconds=seconds, state="queued")


def state_of(database: Database, row: Job) -> str:
    with database.unit_of_work() as session:
        return job.get(session, row.id, tenant=row.tenant).state


def test_a_job_goes_from_validation_to_success(database: Database) -> None:
    with database.unit_of_work() as session:
        row = make_job(session)
    with database.unit_of_work() as session:
        held = claims.take(session, owner="w", seconds=30, state="validating_files")
    assert held is not None
    assert held.id == row.id
    with database.unit_of_work() as session:
        claims.validated(
            session,
            held,
            report={"rows": 3, "format": "chat"},
            resolved={"n_epochs": 1},
            gang="tiny/auto/none",
        )
        assert not claims.renew(session, [(held.id, held.fence)], seconds=30)
    running = claim(database)
    assert running is not None
    assert running.state == "running"
    assert running.started_at
    with database.unit_of_work() as session:
        claims.finish(session, running, state="succeeded", fine_tuned_model="ft:x")
    assert state_of(database, row) == "succeeded"
    assert claim(database) is None


def test_only_one_of_many_claims_wins(database: Database) -> None:
    with database.unit_of_work() as session:
        make_queued_job(session)
    with ThreadPoolExecutor(8) as pool:
        won = [row for row in pool.map(lambda n: claim(database, owner=f"w{n}"), range(16)) if row]
    assert len(won) == 1
    assert won[0].fence == 1


def claim_gang(database: Database, *, owner: str = "w", most: int = 8) -> list[Job]:
    with database.unit_of_work() as session:
        return claims.take_gang(session, owner=owner, seconds=30, most=most)


def test_jobs_that_fit_are_claimed_together_each_under_a_fence_of_its_own(
    database: Database,
) -> None:
    with database.unit_of_work() as session:
        posted = [make_queued_job(session, gang="tiny") for _ in range(5)]
        ids = [row.id for row in posted]
    held = claim_gang(database, most=3)
    assert [row.id for row in held] == ids[:3]
    assert {(row.state, row.fence, row.attempts, row.owner) for row in held} == {
        ("running", 1, 1, "w")
    }
    with database.unit_of_work() as session:
        more = list(claims.take_more(session, held[0], owner="w", seconds=30, most=8))
    assert [row.id for row in more] == ids[3:]
    with database.unit_of_work() as session:
        job.cancel(session, ids[1], tenant="acme")
    with database.unit_of_work() as session:
        renewed = claims.renew(session, [(row.id, row.fence) for row in held], seconds=30)
    assert renewed == {(ids[0], 1): ("running", True), (ids[2], 1): ("running", True)}


def test_no_job_is_claimed_into_two_gangs(database: Database) -> None:
    with database.unit_of_work() as session:
        for _ in range(12):
            make_queued_job(session, gang="tiny")
    with ThreadPoolExecutor(6) as pool:
        gangs = list(pool.map(lambda n: claim_gang(database, owner=f"w{n}", most=4), range(6)))
    claimed = [row.id for gang in gangs for row in gang]
    assert len(claimed) == len(set(claimed)) == 12
    assert max(map(len, gangs)) <= 4


@pytest.mark.parametrize("other", [None, "other"])
def test_a_gang_overtakes_no_job(database: Database, other: str | None) -> None:
    with database.unit_of_work() as session:
        for gang in ("tiny", "tiny", other, "tiny"):
            make_queued_job(session, gang=gang)
    assert [row.gang for row in claim_gang(database)] == ["tiny", "tiny"]
    assert [row.gang for row in claim_gang(database)] == [other]
    assert [row.gang for row in claim_gang(database)] == ["tiny"]


def test_a_job_that_was_lost_twice_is_alone(database: Database) -> None:
    with database.unit_of_work() as session:
        for attempts in (1, 1, 2, 0, 0):
            make_queued_job(session, gang="tiny", attempts=attempts)
    assert [len(claim_gang(database)) for _ in range(3)] == [2, 1, 2]


def test_a_job_that_is_to_be_alone_is_claimed_alone_at_its_next_try(database: Database) -> None:
    with database.unit_of_work() as session:
        for _ in range(3):
            make_queued_job(session, gang="tiny")
    lost, *others = claim_gang(database)
    with database.unit_of_work() as session:
        claims.retry(session, lost, max_attempts=5, reason="No memory", alone=True)
        make_queued_job(session, gang="tiny")
        assert not list(claims.take_more(session, others[0], owner="w", seconds=30, most=8))
    assert [(row.id, row.attempts) for row in claim_gang(database)] == [(lost.id, 2)]


def test_the_tenant_with_the_fewest_running_jobs_is_next(database: Database) -> None:
    with database.unit_of_work() as session:
        for _ in range(3):
            make_queued_job(session, tenant="greedy")
        make_queued_job(session, tenant="modest")
    owners = [claim(database) for _ in range(3)]
    assert [row.tenant for row in owners if row] == ["greedy", "modest", "greedy"]


def test_a_stale_worker_is_refused_everywhere(database: Database) -> None:
    with database.unit_of_work() as session:
        make_queued_job(session)
    zombie = claim(database, seconds=-1.0)
    assert zombie is not None
    with database.unit_of_work() as session:
        claims.reclaim_expired(session, max_attempts=5)
    heir = claim(database, owner="w2")
    assert heir is not None
    assert heir.fence > zombie.fence
    writes = [
        lambda session: claims.update_owned(session, zombie, step=9),
        lambda session: claims.finish(session, zombie, state="succeeded"),
        lambda session: claims.fail(session, zombie, code="x", message="x"),
        lambda session: claims.hand_back(session, zombie, step=1),
        lambda session: claims.retry(session, zombie, max_attempts=5, reason="x"),
    ]
    for write in writes:
        with pytest.raises(StaleFence), database.unit_of_work() as session:
            write(session)
    with database.unit_of_work() as session:
        assert not claims.renew(session, [(zombie.id, zombie.fence)], seconds=30)
    assert state_of(database, heir) == "running"


def test_infrastructure_faults_are_retried_a_bounded_number_of_times(database: Database) -> None:
    with database.unit_of_work() as session:
        row = make_queued_job(session)
    for _ in range(3):
        assert claim(database, seconds=-1.0) is not None
        with database.unit_of_work() as session:
            claims.reclaim_expired(session, max_attempts=3)
    with database.unit_of_work() as session:
        ended = job.get(session, row.id, tenant="acme")
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["code"] == "too_many_attempts"


def test_a_job_without_a_saved_state_is_said_to_start_again(database: Database) -> None:
    """And one that was saved after it was taken, to go on."""
    for saved, told in ((None, "starts again."), ("0" * 64, "goes on from its last checkpoint.")):
        with database.unit_of_work() as session:
            make_queued_job(session)
        row = claim(database)
        assert row is not None
        with database.unit_of_work() as session:
            if saved:
                claims.update_owned(session, row, resume_digest=saved)
            claims.retry(session, row, max_attempts=5, reason="The worker vanished", wait_seconds=9)
        with database.unit_of_work() as session:
            events, _ = event.list_page(session, row.id, page=Page(1))
        assert events[0].message == f"The worker vanished; the job {told}"


def test_cancel_is_final_and_refuses_the_worker(database: Database) -> None:
    with database.unit_of_work() as session:
        row = make_queued_job(session)
    running = claim(database)
    assert running is not None
    with database.unit_of_work() as session:
        assert job.cancel(session, row.id, tenant="acme").state == "cancelled"
    with pytest.raises(StaleFence), database.unit_of_work() as session:
        claims.finish(session, running, state="succeeded")
    with database.unit_of_work() as session:
        assert job.cancel(session, row.id, tenant="acme").state == "cancelled"
    with pytest.raises(InvalidRequest) as refused, database.unit_of_work() as session:
        job.resume(session, row.id, tenant="acme")
    assert refused.value.code == "invalid_job_state"


def test_pause_waits_for_the_trainer_to_save_and_resume_queues_again(database: Database) -> None:
    with database.unit_of_work() as session:
        row = make_queued_job(session)
    running = claim(database)
    assert running is not None
    with database.unit_of_work() as session:
        assert job.pause(session, row.id, tenant="acme").state == "pausing"
    with pytest.raises(InvalidRequest, match="pausing"), database.unit_of_work() as session:
        job.resume(session, row.id, tenant="acme")
    with database.unit_of_work() as session:
        held = (running.id, running.fence)
        assert claims.renew(session, [held], seconds=30) == {held: ("pausing", True)}
        claims.hand_back(session, running, step=4)
    assert state_of(database, row) == "paused"
    assert claim(database) is None
    with database.unit_of_work() as session:
        assert job.resume(session, row.id, tenant="acme").state == "queued"
    again = claim(database)
    assert again is not None
    assert again.attempts == 1


@pytest.mark.parametrize("state", ["queued", "running"])
def test_to_resume_what_goes_on_already_disturbs_nobody(database: Database, state: str) -> None:
    with database.unit_of_work() as session:
        row = make_queued_job(session)
        job.pause(session, row.id, tenant="acme")
    with database.unit_of_work() as session:
        job.resume(session, row.id, tenant="acme")
    held = claim(database) if state == "running" else None
    with database.unit_of_work() as session:
        assert job.resume(session, row.id, tenant="acme").state == state
        told, _ = event.list_page(session, row.id, page=Page(10))
    assert [one.message for one in told].count("The job was resumed.") == 1
    if held is not None:
        with database.unit_of_work() as session:
            claims.update_owned(session, held, step=1)


def test_pausing_a_job_that_is_being_validated_refuses_the_validator(database: Database) -> None:
    with database.unit_of_work() as session:
        row = make_job(session)
    with database.unit_of_work() as session:
        held = claims.take(session, owner="w", seconds=30, state="validating_files")
    assert held is not None
    with database.unit_of_work() as session:
        assert job.pause(session, row.id, tenant="acme").state == "paused"
    with pytest.raises(StaleFence), database.unit_of_work() as session:
        claims.validated(
            session, held, report={"rows": 1, "format": "chat"}, resolved={}, gang=None
        )
    with database.unit_of_work() as session:
        assert job.resume(session, row.id, tenant="acme").state == "validating_files"
    with database.unit_of_work() as session:
        assert claims.take(session, owner="w", seconds=30, state="validating_files") is not None


def test_a_foreign_job_reads_like_a_missing_one(database: Database) -> None:
    with database.unit_of_work() as session:
        row = make_queued_job(session, tenant="acme")
    with pytest.raises(NotFound) as foreign, database.unit_of_work() as session:
        job.get(session, row.id, tenant="other")
    with pytest.raises(NotFound) as missing, database.unit_of_work() as session:
        job.get(session, row.id + "x", tenant="other")
    assert foreign.value.message.replace(row.id, "ID") == missing.value.message.replace(
        row.id + "x", "ID"
    )


def test_pages_and_metadata_filters(database: Database) -> None:
    with database.unit_of_work() as session:
        rows = [make_queued_job(session, labels={"n": str(n % 2)} if n else None) for n in range(5)]
    with database.unit_of_work() as session:
        first, more = job.list_page(session, tenant="acme", page=Page(2), metadata=None)
        assert [row.id for row in first] == [rows[4].id, rows[3].id]
        assert more
        rest, more = job.list_page(
            session, tenant="acme", page=Page(10, after=first[-1].id), metadata=None
        )
        assert len(rest) == 3
        assert not more
        ones, _ = job.list_page(session, tenant="acme", page=Page(10), metadata={"n": "1"})
        assert [row.id for row in ones] == [rows[3].id, rows[1].id]
        odd = {'a"b\\.$[0]': "x'y"}
        oddly = make_job(session, labels=odd)
        found, _ = job.list_page(session, tenant="acme", page=Page(10), metadata=odd)
        assert [row.id for row in found] == [oddly.id]
        bare, _ = job.list_page(session, tenant="acme", page=Page(10), metadata={})
        assert [row.id for row in bare] == [rows[0].id]


def test_a_cursor_of_somebody_else_gives_nothing(database: Database) -> None:
    with database.unit_of_work() as session:
        make_queued_job(session, tenant="acme")
        foreign = make_queued_job(session, tenant="other")
        rows, more = job.list_page(
            session, tenant="acme", page=Page(10, after=foreign.id), metadata=None
        )
    assert not rows
    assert not more


def test_failing_keeps_each_problem_as_an_event(database: Database) -> None:
    with database.unit_of_work() as session:
        make_queued_job(session)
    running = claim(database)
    assert running is not None
    problem = {"line": 3, "code": "invalid_json", "message": "Not JSON."}
    with database.unit_of_work() as session:
        claims.fail(
            session, running, code="invalid_training_file", message="Bad.", problems=[problem]
        )
        events, _ = event.list_page(session, running.id, page=Page(10))
    assert "Line 3: Not JSON." in [item.message for item in events]
