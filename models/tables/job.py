"""Jobs: the only place where a job changes state.

    validating_files -> queued -> running -> succeeded | failed | cancelled
    queued | running -> pausing -> paused -> queued

A worker owns a job from `claim` until `lease_until`, both by the database's clock. Each claim
raises `fence`; every later write of that worker names its fence and is refused with `StaleFence`
once somebody else has claimed the job, or a person has cancelled it. Terminal states are final.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Index,
    Integer,
    String,
    UniqueConstraint,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column
from sqlalchemy.sql.elements import ColumnElement

from core.errors import InvalidRequest, NotFound, StaleFence
from core.queue import Ring
from models.tables import event
from models.tables.base import Base, Page, database_now, read_page

WAITING = ("validating_files", "queued")
OWNED = ("running", "pausing")
TERMINAL = ("succeeded", "failed", "cancelled")


class Job(Base):
    """One training run that somebody asked for."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_lease_until", "state", "lease_until"),
        UniqueConstraint("tenant", "idempotency_key"),
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    tenant: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(String(20), default="validating_files")

    # what was asked for
    model: Mapped[str] = mapped_column(String(255))
    base: Mapped[str] = mapped_column(String(64))
    parent_digest: Mapped[str | None] = mapped_column(String(64))
    training_file: Mapped[str] = mapped_column(String(40))
    training_digest: Mapped[str] = mapped_column(String(64), index=True)
    validation_file: Mapped[str | None] = mapped_column(String(40))
    validation_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(Integer)
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))
    method: Mapped[dict[str, Any]] = mapped_column(JSON)
    loop: Mapped[dict[str, Any]] = mapped_column(JSON)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_digest: Mapped[str] = mapped_column(String(64))

    # who works on it
    owner: Mapped[str | None] = mapped_column(String(128))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    resume_digest: Mapped[str | None] = mapped_column(String(64))

    # how far it is
    created_at: Mapped[float] = mapped_column(default=database_now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    trained_parameters: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_second: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    result_file: Mapped[str | None] = mapped_column(String(40))
    fine_tuned_model: Mapped[str | None] = mapped_column(String(255))


# --- for the api --------------------------------------------------------------------------------


def add(session: Session, row: Job) -> Job:
    """Put a new job in line for validation and wake a worker after the commit."""
    session.add(row)
    session.flush()
    event.add(session, row.id, message=f"Created fine-tuning job: {row.id}")
    _ring(session, "graftwork.validate", row.id)
    return row


def get(session: Session, job_id: str, *, tenant: str) -> Job:
    """Return a tenant's job, or raise `NotFound`."""
    row = session.scalar(select(Job).where(Job.id == job_id, Job.tenant == tenant))
    if row is None:
        raise NotFound(f"No such fine-tuning job: {job_id!r}.", code="job_not_found")
    return row


def find_by_idempotency_key(session: Session, key: str, *, tenant: str) -> Job | None:
    """Return the job that an earlier request with the same key made."""
    return session.scalar(select(Job).where(Job.idempotency_key == key, Job.tenant == tenant))


def list_page(
    session: Session, *, tenant: str, page: Page, metadata: dict[str, str] | None
) -> tuple[Sequence[Job], bool]:
    """Return a page of a tenant's jobs; `metadata` keeps those that have all its pairs.

    An empty `metadata` keeps the jobs that have none, as the SDK's `metadata=null` asks.
    """
    query = select(Job).where(Job.tenant == tenant)
    if metadata == {}:
        query = query.where(Job.labels.is_(None))
    for key, value in (metadata or {}).items():
        query = query.where(Job.labels[key].as_string() == value)
    return read_page(session, query, page=page, order=Job.number, key=Job.id)


def cancel(session: Session, job_id: str, *, tenant: str) -> Job:
    """End a job now; whoever works on it is refused from here on and stops within a second."""
    row = get(session, job_id, tenant=tenant)
    _move(
        session,
        row,
        to="cancelled",
        allowed=(*WAITING, *OWNED, "paused"),
        values={"finished_at": database_now(), "lease_until": None, "estimated_finish": None},
    )
    event.add(session, row.id, message="The job was cancelled.")
    return row


def pause(session: Session, job_id: str, *, tenant: str) -> Job:
    """Stop a job so that it can go on later: at once if nobody works on it, else after a save."""
    row = get(session, job_id, tenant=tenant)
    running = row.state in OWNED
    _move(
        session,
        row,
        to="pausing" if running else "paused",
        allowed=OWNED if running else WAITING,
        values={"estimated_finish": None},
    )
    event.add(session, row.id, message="The job is pausing." if running else "The job is paused.")
    return row


def resume(session: Session, job_id: str, *, tenant: str) -> Job:
    """Put a paused job back in line; it goes on from the step at which it was saved."""
    row = get(session, job_id, tenant=tenant)
    state = "queued" if row.report else "validating_files"
    _move(session, row, to=state, allowed=("paused",), values={})
    event.add(session, row.id, message="The job was resumed.")
    _ring(session, "graftwork.train" if state == "queued" else "graftwork.validate", row.id)
    return row


def _move(
    session: Session, row: Job, *, to: str, allowed: Sequence[str], values: dict[str, Any]
) -> None:
    statement = update(Job).where(Job.id == row.id, Job.state.in_(allowed))
    if session.execute(statement.values(state=to, **values)).rowcount != 1:  # type: ignore[attr-defined]
        session.refresh(row)
        wish = {"cancelled": "cancelled", "queued": "resumed"}.get(to, "paused")
        raise InvalidRequest(
            f"A job that is {row.state} cannot be {wish}.", code="invalid_job_state"
        )
    session.refresh(row)


# --- for workers --------------------------------------------------------------------------------


def _lease_is_over(row: type[Job] = Job) -> ColumnElement[bool]:
    return or_(row.lease_until.is_(None), row.lease_until < database_now())


def claim(
    session: Session, *, owner: str, seconds: float, state: str, job_id: str | None = None
) -> Job | None:
    """Take a job in `state` that nobody holds: the given one, or the next in line.

    Tenants take turns: the next job is the oldest of the tenant with the fewest running.
    """
    candidate, other = aliased(Job), aliased(Job)
    running = (
        select(func.count())
        .where(other.tenant == candidate.tenant, other.state.in_(OWNED))
        .scalar_subquery()
    )
    next_number = (
        select(candidate.number)
        .where(candidate.state == state, _lease_is_over(candidate))
        .order_by(running, candidate.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=candidate)
    )
    if job_id is not None:
        next_number = next_number.where(candidate.id == job_id)
    values: dict[str, Any] = {
        "owner": owner,
        "fence": Job.fence + 1,
        "lease_until": database_now() + seconds,
    }
    if state == "queued":
        values |= {
            "state": "running",
            "attempts": Job.attempts + 1,
            "started_at": func.coalesce(Job.started_at, database_now()),
        }
    statement = (
        update(Job)
        .where(Job.number == next_number.scalar_subquery(), Job.state == state, _lease_is_over())
        .values(**values)
        .returning(Job)
    )
    return session.scalars(statement).one_or_none()


def waiting(session: Session, *, state: str, older_than: float) -> bool:
    """Say whether a job has been waiting in `state` for longer than `older_than` seconds."""
    query = select(Job.id).where(
        Job.state == state, _lease_is_over(), Job.created_at < database_now() - older_than
    )
    return session.scalar(query.limit(1)) is not None


def update_owned(session: Session, row: Job, **values: Any) -> None:
    """Write to a job that this worker owns; `StaleFence` when it does not any more."""
    statement = update(Job).where(
        Job.id == row.id, Job.fence == row.fence, Job.state.not_in((*TERMINAL, "paused"))
    )
    if session.execute(statement.values(**values)).rowcount != 1:  # type: ignore[attr-defined]
        raise StaleFence(f"Job {row.id} is no longer this worker's.")


def renew(session: Session, row: Job, *, seconds: float) -> str:
    """Lengthen the lease and return the job's state, in which a wish to pause is read."""
    update_owned(session, row, lease_until=database_now() + seconds)
    return session.scalar(select(Job.state).where(Job.id == row.id)) or "cancelled"


def validated(session: Session, row: Job, *, report: dict[str, Any], loop: dict[str, Any]) -> None:
    """Put a job whose file is sound in line for training."""
    update_owned(
        session, row, state="queued", owner=None, lease_until=None, report=report, loop=loop
    )
    event.add(
        session,
        row.id,
        message=f"Files validated: {report['rows']} rows of {report['format']} data.",
    )
    _ring(session, "graftwork.train", row.id)


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


def fail(
    session: Session,
    row: Job,
    *,
    code: str,
    message: str,
    param: str | None = None,
    problems: Sequence[dict[str, Any]] = (),
) -> None:
    """End an owned job with a typed error; each problem of its data becomes an event."""
    error: dict[str, Any] = {"code": code, "message": message, "param": param}
    if problems:
        error["problems"] = list(problems)
    finish(session, row, state="failed", error=error)
    for problem in problems:
        event.add(
            session,
            row.id,
            level="error",
            data=problem,
            message=f"Line {problem.get('line')}: {problem.get('message')}",
        )
    event.add(session, row.id, level="error", message=message, data={"code": code})


def hand_back(session: Session, row: Job, *, step: int) -> None:
    """Give back a job whose trainer was told to stop and has saved its state.

    It becomes `paused` if somebody asked for that, else `queued` for another worker; neither
    counts as a failed attempt.
    """
    pausing = session.scalar(select(Job.state).where(Job.id == row.id)) == "pausing"
    _release(
        session,
        row,
        state="paused" if pausing else "queued",
        message=f"The job was {'paused' if pausing else 'saved and handed back'} at step {step}.",
        attempts=Job.attempts - 1,
    )


def retry(session: Session, row: Job, *, max_attempts: int, reason: str) -> None:
    """Put an owned job back in line after a fault of the machinery, or fail it after too many."""
    if row.attempts >= max_attempts:
        fail(
            session,
            row,
            code="too_many_attempts",
            message=f"{reason}; gave up after {row.attempts} attempts. Ask the server's operator.",
        )
        return
    pausing = session.scalar(select(Job.state).where(Job.id == row.id)) == "pausing"
    _release(
        session,
        row,
        state="paused" if pausing else "queued",
        message=f"{reason}; the job goes on from its last checkpoint.",
        level="warn",
    )


def _release(
    session: Session, row: Job, *, state: str, message: str, level: str = "info", **values: Any
) -> None:
    update_owned(
        session,
        row,
        state=state,
        owner=None,
        lease_until=None,
        estimated_finish=None,
        fence=Job.fence + 1,
        **values,
    )
    event.add(session, row.id, message=message, level=level)
    if state == "queued":
        _ring(session, "graftwork.train", row.id)


def reclaim_expired(session: Session, *, max_attempts: int) -> None:
    """Take jobs back from workers that vanished without a word."""
    lost = session.scalars(
        select(Job)
        .where(Job.state.in_(OWNED), Job.lease_until < database_now())
        .with_for_update(skip_locked=True)
    )
    for row in lost.all():
        retry(session, row, max_attempts=max_attempts, reason="The worker vanished")


def is_pinned(session: Session, digest: str) -> bool:
    """Say whether a job that has not ended needs these bytes."""
    query = select(Job.id).where(
        Job.state.not_in(TERMINAL),
        or_(
            Job.training_digest == digest,
            Job.validation_digest == digest,
            Job.parent_digest == digest,
        ),
    )
    return session.scalar(query.limit(1)) is not None


def count_by_state(session: Session) -> dict[str, int]:
    """Return how many jobs are in each state."""
    rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
    return {state: count for state, count in rows}  # noqa: C416 - Row is not a tuple to mypy


def _ring(session: Session, task: str, job_id: str) -> None:
    session.info.setdefault("rings", []).append(Ring(task, job_id))
