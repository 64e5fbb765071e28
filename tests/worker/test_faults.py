"""What is killed, stopped or cancelled in the middle loses nothing and shows nothing twice."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from models.tables import adapter, checkpoint, job
from models.tables.base import Page
from models.tables.job import Job
from tests.processes import children, is_alive, wait_for
from tests.worker.conftest import Site

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"It is {n}."},
        ]
    }
    for n in range(40)
]
LONG = {"n_epochs": 5, "batch_size": 2, "learning_rate": 0.01}
METHOD = {"type": "lora", "rank": 4, "dropout": 0.1}
STEPS = 100
SELDOM = {"GRAFTWORK_WORKER__RESUME_SECONDS": "2"}
"""Many jobs that save all the time would test the disk."""
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what happens between worker, trainer and files: no other database would see more of it."""


def post(site: Site) -> Job:
    return site.add_job(ROWS, loop=LONG, method=METHOD)


def weights(site: Site, row: Job, folder: Path) -> str:
    """Return the hash of the one published adapter's tensors."""
    with site.database.unit_of_work() as session:
        published = adapter.list_all(session, tenant=row.tenant)
    assert [item.job_id for item in published].count(row.id) == 1
    digest = next(item.digest for item in published if item.job_id == row.id)
    tree = site.store.fetch_tree(digest, folder / digest)
    return hashlib.sha256((tree / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unbroken() -> dict[str, str]:
    """What a run that nothing disturbed came to; filled by the first test."""
    return {}


def check_like_unbroken(site: Site, row: Job, *, unbroken: dict[str, str]) -> None:
    """Every step was told once, and the weights are those of a run that nothing disturbed."""
    assert site.steps_told(row) == list(range(1, STEPS + 1))
    found = weights(site, row, site.folder / "check")
    assert found == unbroken.setdefault("weights", found)


def trainer_of(worker_pid: int) -> int:
    return wait_for(lambda: children(worker_pid))[0]


def test_a_run_that_nothing_disturbs(site: Site, unbroken: dict[str, str]) -> None:
    site.start_worker()
    row = post(site)
    ended = site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)
    assert ended.attempts == 1
    assert ended.resume_digest is None
    with site.database.unit_of_work() as session:
        saved, _ = checkpoint.list_page(session, row.id, page=Page(100))
    assert [item.step for item in saved] == [100, 80, 60, 40, 20]


def test_kill_the_trainer(site: Site, unbroken: dict[str, str]) -> None:
    worker = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 25)
    os.kill(trainer_of(worker.pid), signal.SIGKILL)
    ended = site.wait_for_state(row, "succeeded")
    assert ended.attempts == 2
    check_like_unbroken(site, row, unbroken=unbroken)


def test_kill_the_worker(site: Site, unbroken: dict[str, str]) -> None:
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


def test_a_worker_that_was_frozen_past_its_lease_is_refused(
    site: Site, unbroken: dict[str, str]
) -> None:
    frozen = site.start_worker()
    row = post(site)
    site.wait_for_step(row, 10)
    trainer = trainer_of(frozen.pid)
    with site.database.unit_of_work() as session:
        # While we write, the worker does not: frozen in a transaction it would lock everyone out.
        session.execute(select(Job.number).where(Job.id == row.id).with_for_update())
        os.kill(frozen.pid, signal.SIGSTOP)
    os.kill(trainer, signal.SIGSTOP)
    site.start_worker()
    site.wait_for_state(row, "succeeded")
    os.kill(trainer, signal.SIGCONT)
    os.kill(frozen.pid, signal.SIGCONT)
    wait_for(lambda: not is_alive(trainer), seconds=10)
    assert is_alive(frozen.pid)
    check_like_unbroken(site, row, unbroken=unbroken)


def test_a_worker_that_is_told_to_stop_hands_its_job_over(
    site: Site, unbroken: dict[str, str]
) -> None:
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


def test_pause_and_resume(site: Site, unbroken: dict[str, str]) -> None:
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
def test_two_kills_in_one_stretch_tell_no_step_twice(site: Site, unbroken: dict[str, str]) -> None:
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
def test_a_damaged_checkpoint_costs_its_steps_and_not_the_job(
    site: Site, unbroken: dict[str, str]
) -> None:
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
def test_equal_jobs_side_by_side_keep_their_own_checkpoints(
    site: Site, unbroken: dict[str, str]
) -> None:
    worker = site.start_worker(GRAFTWORK_WORKER__JOBS="2")
    twins = [post(site), post(site)]
    for row in twins:
        site.wait_for_step(row, 25)
    for pid in children(worker.pid):
        os.kill(pid, signal.SIGKILL)
    for row in twins:
        site.wait_for_state(row, "succeeded")
        check_like_unbroken(site, row, unbroken=unbroken)


def post_gang(site: Site, *, jobs: int = 2) -> list[Job]:
    """Post the job several times and wait until all are in the middle of their training."""
    rows = [post(site) for _ in range(jobs)]
    for row in rows:
        site.wait_for_step(row, 10)
    return rows


def test_a_gang_is_one_process_and_each_job_is_as_if_alone(
    site: Site, unbroken: dict[str, str]
) -> None:
    worker = site.start_worker(**SELDOM)
    rows = post_gang(site)
    assert len(children(worker.pid)) == 1
    late = post(site)
    site.wait_for_step(late, 5)
    assert len(children(worker.pid)) == 1
    for row in (*rows, late):
        assert site.wait_for_state(row, "succeeded").attempts == 1
        check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_kill_the_trainer_of_a_gang(site: Site, unbroken: dict[str, str]) -> None:
    worker = site.start_worker(**SELDOM)
    rows = post_gang(site)
    os.kill(trainer_of(worker.pid), signal.SIGKILL)
    for row in rows:
        assert site.wait_for_state(row, "succeeded").attempts == 2
        check_like_unbroken(site, row, unbroken=unbroken)


def test_kill_the_worker_of_a_gang(site: Site, unbroken: dict[str, str]) -> None:
    worker = site.start_worker(**SELDOM)
    rows = post_gang(site)
    trainer = trainer_of(worker.pid)
    worker.kill()
    worker.wait()
    wait_for(lambda: not is_alive(trainer), seconds=3)
    site.start_worker(**SELDOM)
    for row in rows:
        site.wait_for_state(row, "succeeded")
        check_like_unbroken(site, row, unbroken=unbroken)


def test_one_of_a_gang_is_cancelled_and_one_paused(site: Site, unbroken: dict[str, str]) -> None:
    site.start_worker(**SELDOM)
    cancelled, paused, other = post_gang(site, jobs=3)
    with site.database.unit_of_work() as session:
        job.cancel(session, cancelled.id, tenant=cancelled.tenant)
        job.pause(session, paused.id, tenant=paused.tenant)
    site.wait_for_state(paused, "paused")
    with site.database.unit_of_work() as session:
        job.resume(session, paused.id, tenant=paused.tenant)
    for row in (paused, other):
        assert site.wait_for_state(row, "succeeded").attempts == 1
        check_like_unbroken(site, row, unbroken=unbroken)
    assert site.job(cancelled).state == "cancelled"
    with site.database.unit_of_work() as session:
        published = adapter.list_all(session, tenant=cancelled.tenant)
    assert cancelled.id not in {item.job_id for item in published}


def test_a_worker_that_is_told_to_stop_hands_a_whole_gang_over(
    site: Site, unbroken: dict[str, str]
) -> None:
    worker = site.start_worker(**SELDOM)
    rows = post_gang(site)
    worker.terminate()
    worker.wait(20)
    assert {(site.job(row).state, site.job(row).attempts) for row in rows} == {("queued", 0)}
    site.start_worker(**SELDOM)
    for row in rows:
        site.wait_for_state(row, "succeeded")
        check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_bad_data_of_one_leaves_its_gang_alone(site: Site, unbroken: dict[str, str]) -> None:
    site.start_worker(**SELDOM)
    other = post(site)
    site.wait_for_step(other, 5)
    bad = site.add_job(ROWS, loop={**LONG, "max_sequence_length": 8}, method=METHOD)
    ended = site.wait_for_state(bad, "failed")
    assert ended.error is not None
    assert ended.error["code"] == "no_trainable_tokens"
    site.wait_for_state(other, "succeeded")
    check_like_unbroken(site, other, unbroken=unbroken)


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


def test_killed_between_the_last_step_and_publishing(site: Site, unbroken: dict[str, str]) -> None:
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
    assert ended.attempts == 0
    assert ended.report is not None
    assert sum(ended.report["problem_counts"].values()) == len(ended.error["problems"])
