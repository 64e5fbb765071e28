"""What a worker may do to a job, and only while it holds it.

A worker holds a job from `take` until `lease_until`, both by the database's clock. Each claim
raises `fence`; every later write of that worker names its fence and is refused with `StaleFence`
once somebody else has the job, or a person has cancelled it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.elements import ColumnElement

from core.errors import StaleFence
from core.queue import TRAIN
from models.tables import event
from models.tables.base import Claim, Held, changes_one, database_now, lease_is_over, renew_leases
from models.tables.job import OWNED, TERMINAL, Job, ring, ring_comparison

MOST_SHARED_TRIES = 2
"""A job that was lost as often might be what kills its trainer; from then on it is alone."""


def take(
    session: Session,
    *,
    owner: str,
    seconds: float,
    state: str,
    job_id: str | None = None,
    gang: str | None = None,
) -> Job | None:
    """Take a job in `state` that nobody holds: the given one, or the next in line.

    Tenants take turns: the next job is the oldest of the tenant with the fewest running. With
    `gang` the next in line is taken only if it may join that gang: no job is overtaken.
    """
    candidate, other = aliased(Job), aliased(Job)
    running = (
        select(func.count())
        .where(other.tenant == candidate.tenant, other.state.in_(OWNED))
        .scalar_subquery()
    )
    next_number = (
        select(candidate.number)
        .where(candidate.state == state, lease_is_over(candidate))
        .order_by(running, candidate.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=candidate)
    )
    if job_id is not None:
        next_number = next_number.where(candidate.id == job_id)
    values: dict[str, Any] = {
        "owner": owner,
        "fence": Job.fence + 1,
        "attempts": Job.attempts + 1,
        "lease_until": database_now() + seconds,
    }
    if state == "queued":
        values |= {
            "state": "running",
            "started_at": func.coalesce(Job.started_at, database_now()),
        }
    statement = update(Job).where(
        Job.number == next_number.scalar_subquery(), Job.state == state, lease_is_over(Job)
    )
    if gang is not None:
        statement = statement.where(Job.gang == gang, Job.attempts < MOST_SHARED_TRIES)
    return session.scalars(statement.values(**values).returning(Job)).one_or_none()


def take_gang(
    session: Session, *, owner: str, seconds: float, most: int, job_id: str | None = None
) -> list[Job]:
    """Take a queued job, as `take` does, and those behind it that may be trained with it."""
    first = take(session, owner=owner, seconds=seconds, state="queued", job_id=job_id)
    if first is None:
        return []
    return [first, *take_more(session, first, owner=owner, seconds=seconds, most=most - 1)]


def take_more(
    session: Session, first: Job, *, owner: str, seconds: float, most: int
) -> Iterator[Job]:
    """Take up to `most` queued jobs that may be trained with one that was taken before."""
    if first.gang is None or first.attempts > MOST_SHARED_TRIES:
        return
    for _ in range(most):
        row = take(session, owner=owner, seconds=seconds, state="queued", gang=first.gang)
        if row is None:
            return
        yield row


def waiting(session: Session, *, state: str, older_than: float) -> bool:
    """Say whether a job has been waiting in `state` for longer than `older_than` seconds."""
    query = select(Job.id).where(
        Job.state == state, lease_is_over(Job), Job.created_at < database_now() - older_than
    )
    return session.scalar(query.limit(1)) is not None


def _is_held() -> ColumnElement[bool]:
    """Say in SQL whether a job is in a state in which its fence protects it."""
    return Job.state.not_in((*TERMINAL, "paused"))


def update_owned(session: Session, row: Job, **values: Any) -> None:
    """Write to a job that this worker owns; `StaleFence` when it does not any more."""
    statement = update(Job).where(Job.id == row.id, Job.fence == row.fence, _is_held())
    if not changes_one(session, statement.values(**values)):
        raise StaleFence(f"Job {row.id} is no longer this worker's.")


def renew(session: Session, claims: Sequence[Claim], *, seconds: float) -> dict[Claim, Held]:
    """Lengthen the leases of jobs; return those that this worker still owns.

    A wish to pause is read in their states.
    """
    return renew_leases(session, Job, claims, held=_is_held(), seconds=seconds)


def validated(
    session: Session,
    row: Job,
    *,
    report: dict[str, Any],
    resolved: dict[str, Any],
    gang: str | None,
) -> None:
    """Put a job whose file is sound in line for training, alone or with others of its gang.

    What the check took in attempts is not taken from the training.
    """
    update_owned(
        session,
        row,
        state="queued",
        owner=None,
        lease_until=None,
        attempts=0,
        report=report,
        resolved=resolved,
        gang=gang,
    )
    event.add(
        session,
        row.id,
        message=f"Files validated: {report['rows']} rows of {report['format']} data.",
    )
    ring(session, TRAIN, row.id)


def finish(session: Session, row: Job, *, state: str, **values: Any) -> None:
    """Move an owned job to a terminal state."""
    update_owned(
        session,
        row,
        state=state,
        owner=None,
        lease_until=None,
        finished_at=database_now(),
        estimated_finish=None,
        **values,
    )
    ring_comparison(session, row)


def fail(
    session: Session,
    row: Job,
    *,
    code: str,
    message: str,
    param: str | None = None,
    problems: Sequence[dict[str, Any]] = (),
    **values: Any,
) -> None:
    """End an owned job with a typed error; each problem of its data becomes an event."""
    error: dict[str, Any] = {"code": code, "message": message, "param": param}
    if problems:
        error["problems"] = list(problems)
    finish(session, row, state="failed", error=error, **values)
    for problem in problems:
        event.add(
            session,
            row.id,
            level="error",
            data=problem,
            message=f"Line {problem.get('line')}: {problem.get('message')}",
        )
    event.add(session, row.id, level="error", message=message, data={"code": code})


def hand_back(session: Session, row: Job, *, step: int | None) -> None:
    """Give back a job whose trainer was told to stop and has saved its state, if there was room.

    It becomes `paused` if somebody asked for that, else `queued` for another worker; neither
    counts as a failed attempt.
    """
    state = _state_after(session, row)
    message = f"The job was saved at step {step}; it is {state}."
    if step is None:
        message = f"There was no room to save the job; it is {state}, as last saved."
    _release(session, row, state=state, message=message, attempts=Job.attempts - 1)


def retry(
    session: Session,
    row: Job,
    *,
    max_attempts: int,
    reason: str,
    code: str = "too_many_attempts",
    wait_seconds: float = 0.0,
    alone: bool = False,
) -> None:
    """Put an owned job back in line after a fault of the machinery, or fail it after too many.

    Nobody takes it for `wait_seconds`, and from now on nobody with others if it is to be `alone`.
    """
    if row.attempts >= max_attempts:
        tried = f"{reason}; gave up after {row.attempts} attempts. Ask the server's operator."
        fail(session, row, code=code, message=tried)
        return
    # The worker's row is as it was taken; a state may have been saved since.
    saved = session.scalar(select(Job.resume_digest).where(Job.id == row.id))
    going = "goes on from its last checkpoint" if saved else "starts again"
    message = f"{reason}; the job {going}."
    wait = database_now() + wait_seconds if wait_seconds else None
    state = _state_after(session, row)
    gang = None if alone else Job.gang
    _release(session, row, state=state, message=message, level="warn", lease_until=wait, gang=gang)


def _state_after(session: Session, row: Job) -> str:
    """Return where a job goes that its worker lets go of; holds it against a pause meanwhile."""
    state = session.scalar(select(Job.state).where(Job.id == row.id).with_for_update())
    return "paused" if state == "pausing" else "queued"


def _release(
    session: Session, row: Job, *, state: str, message: str, level: str = "info", **values: Any
) -> None:
    free: dict[str, Any] = {"owner": None, "lease_until": None, "estimated_finish": None}
    update_owned(session, row, state=state, fence=Job.fence + 1, **free | values)
    event.add(session, row.id, message=message, level=level)
    if state == "queued":
        ring(session, TRAIN, row.id)


def reclaim_expired(session: Session, *, max_attempts: int) -> None:
    """Take jobs back from workers that vanished without a word."""
    lost = session.scalars(
        select(Job)
        .where(Job.state.in_(OWNED), Job.lease_until < database_now())
        .with_for_update(skip_locked=True)
    )
    for row in lost.all():
        retry(session, row, max_attempts=max_attempts, reason="The worker vanished")


def is_worked_on(session: Session, job_id: str, *, fence: int) -> bool:
    """Say whether the claim with this fence still holds the job."""
    states = ("validating_files", *OWNED)
    query = select(Job.id).where(Job.id == job_id, Job.fence == fence, Job.state.in_(states))
    return session.scalar(query) is not None
