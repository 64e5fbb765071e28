"""What is killed, stopped or cancelled in the middle loses nothing and shows nothing twice."""

import os
import signal

import pytest
from sqlalchemy import select, text

from models.tables import adapter, checkpoint, job
from models.tables.base import Page
from models.tables.job import Job
from tests.processes import children, freeze, is_alive, wait_for
from tests.worker.long_job import (
    METHOD,
    ROWS,
    STEPS,
    check_like_unbroken,
    one_database,
    post,
    trainer_of,
)
from tests.worker.site import SECONDS, Site


def test_a_run_that_nothing_disturbs(site: Site, unbroken: str) -> None:
    site.start_worker()
    row = post(site)
    ended = site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)
    assert ended.attempts == 1
    with site.database.unit_of_work() as session:
        saved, _ = checkpoint.list_page(session, row.id, page=Page(100))
    assert [item.step for item in saved] == [100, 80, 60, 40, 20]


def test_kill_the_trainer(site: Site, unbroken: str) -> None:
    worker = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 25)
    os.kill(trainer_of(worker.pid), signal.SIGKILL)
    ended = site.wait_for_state(row, "succeeded")
    assert ended.attempts == 2
    check_like_unbroken(site, row, unbroken=unbroken)


def test_kill_the_worker(site: Site, unbroken: str) -> None:
    worker = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 25)
    trainer = trainer_of(worker.pid)
    worker.kill()
    worker.wait()
    wait_for(lambda: not is_alive(trainer), seconds=3)
    site.start_worker()
    site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)


def test_a_worker_that_was_frozen_past_its_lease_is_refused(site: Site, unbroken: str) -> None:
    frozen = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 10)
    trainer = trainer_of(frozen.pid)
    with site.database.unit_of_work() as session:
        # On SQLite nobody could ever write again if it were frozen while it writes.
        session.execute(select(Job.number).where(Job.id == row.id).with_for_update())
        freeze(frozen.pid)
    check_taken_over(site, row, frozen=frozen.pid, trainer=trainer, unbroken=unbroken)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_worker_that_was_frozen_while_it_wrote_loses_its_locks(site: Site, unbroken: str) -> None:
    frozen = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 10)
    trainer = trainer_of(frozen.pid)
    blocked = text(
        "SELECT count(*) FROM pg_locks "
        "WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    )
    with site.database.unit_of_work() as session:
        session.execute(select(Job.number).where(Job.id == row.id).with_for_update())
        wait_for(lambda: session.scalar(blocked))
        freeze(frozen.pid)
    # Its statement goes on now, and nobody says that the transaction is over.
    check_taken_over(site, row, frozen=frozen.pid, trainer=trainer, unbroken=unbroken)


def check_taken_over(site: Site, row: Job, *, frozen: int, trainer: int, unbroken: str) -> None:
    """Have another worker end the job; the first one wakes, and changes nothing."""
    freeze(trainer)
    site.start_worker()
    site.wait_for_state(row, "succeeded")
    os.kill(trainer, signal.SIGCONT)
    os.kill(frozen, signal.SIGCONT)
    wait_for(lambda: not is_alive(trainer), seconds=10)
    assert is_alive(frozen)
    check_like_unbroken(site, row, unbroken=unbroken)


def test_a_worker_that_is_told_to_stop_hands_its_job_over(site: Site, unbroken: str) -> None:
    worker = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 10)
    worker.terminate()
    worker.wait(20)
    handed_over = site.job(row)
    assert handed_over.state == "queued"
    assert handed_over.attempts == 0
    site.start_worker()
    site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)


def test_pause_and_resume(site: Site, unbroken: str) -> None:
    worker = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 10)
    with site.database.unit_of_work() as session:
        job.pause(session, row.id, tenant=row.tenant)
    paused = site.wait_for_state(row, "paused")
    assert 10 <= paused.step < STEPS
    wait_for(lambda: not children(worker.pid), seconds=5)
    with site.database.unit_of_work() as session:
        job.resume(session, row.id, tenant=row.tenant)
    site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_two_kills_in_one_stretch_tell_no_step_twice(site: Site, unbroken: str) -> None:
    worker = site.start_worker(GRAFTWORK_WORKER__RESUME_SECONDS="1000")
    row = post(site)
    site.wait_for_step(row, 30)
    os.kill(trainer_of(worker.pid), signal.SIGKILL)
    wait_for(lambda: [e for e in site.events(row) if "goes on from step" in e.message], seconds=60)
    os.kill(trainer_of(worker.pid), signal.SIGKILL)
    ended = site.wait_for_state(row, "succeeded")
    assert ended.attempts == 3
    check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_a_damaged_checkpoint_costs_its_steps_and_not_the_job(site: Site, unbroken: str) -> None:
    site.start_worker()
    row = post(site)
    site.wait_for_step(row, 10)
    with site.database.unit_of_work() as session:
        job.pause(session, row.id, tenant=row.tenant)
    paused = site.wait_for_state(row, "paused")
    assert paused.resume_digest
    for path in (site.folder / "store" / "trees" / paused.resume_digest).glob("*.safetensors"):
        path.write_bytes(b"not what was saved")
    with site.database.unit_of_work() as session:
        job.resume(session, row.id, tenant=row.tenant)
    site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_equal_jobs_side_by_side_keep_their_own_checkpoints(site: Site, unbroken: str) -> None:
    worker = site.start_worker(GRAFTWORK_WORKER__JOBS="2")
    twins = [post(site), post(site)]
    for row in twins:
        site.wait_for_step(row, 25)
    for pid in children(worker.pid):
        os.kill(pid, signal.SIGKILL)
    for row in twins:
        site.wait_for_state(row, "succeeded")
        check_like_unbroken(site, row, unbroken=unbroken)


def test_cancel(site: Site) -> None:
    worker = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 5)
    trainer = trainer_of(worker.pid)
    with site.database.unit_of_work() as session:
        job.cancel(session, row.id, tenant=row.tenant)
    wait_for(lambda: not is_alive(trainer), seconds=3)
    assert site.job(row).state == "cancelled"
    with site.database.unit_of_work() as session:
        assert not adapter.list_all(session, tenant=row.tenant)


def test_killed_between_the_last_step_and_publishing(site: Site, unbroken: str) -> None:
    site.start_worker(GRAFTWORK_CRASH="before-succeeded")
    row = post(site)
    wait_for(lambda: site.job(row).attempts >= 2, seconds=60)
    with site.database.unit_of_work() as session:
        assert not adapter.list_all(session, tenant=row.tenant)
    site.kill_workers()
    site.start_worker()
    site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_a_job_that_always_crashes_ends(site: Site) -> None:
    site.start_worker(GRAFTWORK_CRASH="before-succeeded", GRAFTWORK_WORKER__MAX_ATTEMPTS="2")
    row = site.add_job(ROWS[:4], loop={"n_epochs": 1, "batch_size": 4}, method=METHOD)
    ended = site.wait_for_state(row, "failed")
    assert ended.error is not None
    assert ended.error["code"] == "too_many_attempts"
    assert "SIGKILL" in ended.error["message"]


@one_database
def test_bad_rows_are_named_before_anything_is_trained(site: Site) -> None:
    site.start_worker()
    row = site.add_job(b'{"messages": []}\nnot json\n{"text": "x"}\n')
    ended = site.wait_for_state(row, "failed")
    assert ended.error is not None
    assert ended.error["code"] == "invalid_training_file"
    assert {item["line"] for item in ended.error["problems"]} >= {1, 2}
    assert all(item["code"] and item["message"] for item in ended.error["problems"])
    assert ended.attempts == 1
    assert ended.report is not None
    assert sum(ended.report["problem_counts"].values()) == len(ended.error["problems"])


@one_database
def test_a_worker_that_cannot_open_its_store_ends(site: Site) -> None:
    """It stayed, answered the broker's pings, and trained nothing."""
    assert site.start_worker(GRAFTWORK_STORE_URL="file:///proc/nonsense").wait(SECONDS) == 1
