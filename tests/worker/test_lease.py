"""How a worker keeps its rows: all in one transaction, each lost for itself."""

import time
from collections.abc import Iterator
from threading import Event

import pytest
from sqlalchemy import select, update

from core.database import Database
from core.errors import StorageFull, Unavailable
from models.tables import claims, job
from models.tables.job import Job
from tests.factories import make_queued_job
from worker.lease import Leases

PATIENCE = 10.0


def take_three(database: Database) -> list[Job]:
    with database.unit_of_work() as session:
        for _ in range(3):
            make_queued_job(session, gang="tiny")
    with database.unit_of_work() as session:
        return claims.take_gang(session, owner="w", seconds=30, most=3)


@pytest.fixture
def rows(database: Database) -> list[Job]:
    return take_three(database)


@pytest.fixture
def leases(database: Database) -> Iterator[Leases]:
    with Leases(database=database, seconds=30) as opened:
        yield opened


def wait_until(is_so) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.02)


def ends_of(database: Database) -> dict[str, float | None]:
    with database.unit_of_work() as session:
        return {row.id: row.lease_until for row in session.scalars(select(Job))}


def test_all_rows_are_renewed_in_one_transaction(database, rows):
    asked = []

    def renew(session, claimed, *, seconds):
        asked.append(set(claimed))
        return claims.renew(session, claimed, seconds=seconds)

    before = ends_of(database)
    with Leases(database=database, seconds=30, renew=renew) as leases:
        for row in rows:
            leases.hold(row)
        wait_until(lambda: asked)
    assert asked[0] == {(row.id, row.fence) for row in rows}
    assert all(end > before[name] for name, end in ends_of(database).items())


def test_a_row_that_is_no_longer_ours_is_lost_and_the_others_are_kept(database, rows, leases):
    told = Event()
    held = [leases.hold(row) for row in rows]
    held[1].guard(told.set)
    with database.unit_of_work() as session:
        job.cancel(session, rows[1].id, tenant="acme")
    assert told.wait(PATIENCE)
    assert [lease.lost.is_set() for lease in held] == [False, True, False]
    before = ends_of(database)
    wait_until(lambda: ends_of(database)[rows[2].id] > before[rows[2].id])


def test_a_later_claim_of_the_same_row_is_not_taken_for_ours(database, rows, leases):
    lease = leases.hold(rows[0])
    with database.unit_of_work() as session:
        session.execute(update(Job).where(Job.id == rows[0].id).values(fence=Job.fence + 1))
    assert lease.lost.wait(PATIENCE)


def test_a_wish_to_pause_is_heard(database, rows, leases):
    held = [leases.hold(row) for row in rows]
    with database.unit_of_work() as session:
        job.pause(session, rows[0].id, tenant="acme")
    wait_until(lambda: held[0].state == "pausing")
    assert held[1].state == "running"


def test_a_row_that_is_being_written_to_holds_up_no_other(postgres):
    rows = take_three(postgres)
    with Leases(database=postgres, seconds=30) as leases:
        with postgres.unit_of_work() as session:
            claims.update_owned(session, rows[0], step=1)  # its row is locked until this ends
            held = [leases.hold(row) for row in rows]
            before = ends_of(postgres)
            wait_until(lambda: ends_of(postgres)[rows[2].id] > before[rows[2].id])
            assert ends_of(postgres)[rows[0].id] == before[rows[0].id]
        wait_until(lambda: ends_of(postgres)[rows[0].id] > before[rows[0].id])
    assert not any(lease.lost.is_set() for lease in held)


def test_a_bug_of_the_renewal_does_not_end_it(database, rows):
    asked = []

    def renew(session, claimed, *, seconds):
        asked.append(claimed)
        if len(asked) == 1:
            raise KeyError("a bug")
        return claims.renew(session, claimed, seconds=seconds)

    before = ends_of(database)
    with Leases(database=database, seconds=30, renew=renew) as leases:
        lease = leases.hold(rows[0])
        wait_until(lambda: ends_of(database)[rows[0].id] > before[rows[0].id])
    assert not lease.lost.is_set()


def test_a_released_row_is_left_alone(database, rows, leases):
    kept, released = leases.hold(rows[0]), leases.hold(rows[1])
    leases.release(released)
    time.sleep(0.1)  # what had begun is over
    before = ends_of(database)
    wait_until(lambda: ends_of(database)[rows[0].id] > before[rows[0].id])
    assert ends_of(database)[rows[1].id] == before[rows[1].id]
    assert not kept.lost.is_set()


@pytest.mark.parametrize(
    "error", [Unavailable("away", code="database_unavailable"), StorageFull("full")]
)
def test_a_database_that_is_away_costs_the_rows_only_when_their_time_is_over(
    database, rows, error, capsys
):
    renewed: list[float] = []

    def renew_once(session, claimed, *, seconds):
        if renewed:
            raise error
        renewed.append(time.monotonic())
        return claims.renew(session, claimed, seconds=seconds)

    told: list[float] = []
    with Leases(database=database, seconds=2.0, renew=renew_once) as leases:
        lease = leases.hold(rows[0])
        lease.guard(lambda: told.append(time.monotonic()))
        assert lease.lost.wait(PATIENCE)
    assert 1.4 <= told[0] - renewed[0] <= 2.6
    assert "a bug" not in capsys.readouterr().out


def test_a_row_that_was_never_renewed_may_have_been_taken_a_while_ago(database, rows):
    def refuse(session, claimed, *, seconds):
        raise Unavailable("away", code="database_unavailable")

    began = time.monotonic()
    with Leases(database=database, seconds=4.0, renew=refuse) as leases:
        assert leases.hold(rows[0]).lost.wait(PATIENCE)
    assert time.monotonic() - began < 3.0  # of 3.5
