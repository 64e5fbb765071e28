"""Jobs of one trainer: what ends them all ends none for good, what ends one leaves the others."""

import os
import signal

from models.tables import adapter, job
from models.tables.job import Job
from tests.processes import children, is_alive, wait_for
from tests.worker.long_job import (
    LOOP,
    METHOD,
    ROWS,
    check_like_unbroken,
    one_database,
    post,
    trainer_of,
)
from tests.worker.site import Site

SELDOM = {"GRAFTWORK_WORKER__RESUME_SECONDS": "2"}
"""Many jobs that save all the time would test the disk."""


def post_gang(site: Site, *, jobs: int = 2) -> list[Job]:
    """Post the job several times and wait until all are in the middle of their training."""
    rows = [post(site) for _ in range(jobs)]
    for row in rows:
        site.wait_for_step(row, 10)
    return rows


def test_a_gang_is_one_process_and_each_job_is_as_if_alone(site: Site, unbroken: str) -> None:
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
def test_cancel_one_before_its_order_is_read(site: Site, unbroken: str) -> None:
    rows = [post(site) for _ in range(3)]
    gone = rows[1]
    site.start_worker(**SELDOM)
    orders = site.folder / "work"
    wait_for(lambda: any(orders.glob(f"{gone.id}-*/job.json")), seconds=20)
    with site.database.unit_of_work() as session:
        job.cancel(session, gone.id, tenant=gone.tenant)
    for row in (rows[0], rows[2]):
        assert site.wait_for_state(row, "succeeded").attempts == 1
        check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_a_job_is_trained_on_its_own_base(site: Site, unbroken: str) -> None:
    row = post(site)
    site.start_worker(**SELDOM, GRAFTWORK_BASE="another")
    site.wait_for_state(row, "succeeded")
    check_like_unbroken(site, row, unbroken=unbroken)


@one_database
def test_kill_the_trainer_of_a_gang(site: Site, unbroken: str) -> None:
    worker = site.start_worker(**SELDOM)
    rows = post_gang(site)
    os.kill(trainer_of(worker.pid), signal.SIGKILL)
    for row in rows:
        assert site.wait_for_state(row, "succeeded").attempts == 2
        check_like_unbroken(site, row, unbroken=unbroken)


def test_kill_the_worker_of_a_gang(site: Site, unbroken: str) -> None:
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


def test_one_of_a_gang_is_cancelled_and_one_paused(site: Site, unbroken: str) -> None:
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


def test_a_worker_that_is_told_to_stop_hands_a_whole_gang_over(site: Site, unbroken: str) -> None:
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
def test_bad_data_of_one_leaves_its_gang_alone(site: Site, unbroken: str) -> None:
    site.start_worker(**SELDOM)
    other = post(site)
    site.wait_for_step(other, 5)
    bad = site.add_job(ROWS, loop={**LOOP, "max_sequence_length": 8}, method=METHOD)
    ended = site.wait_for_state(bad, "failed")
    assert ended.error is not None
    assert ended.error["code"] == "no_trainable_tokens"
    site.wait_for_state(other, "succeeded")
    check_like_unbroken(site, other, unbroken=unbroken)
