"""Jobs, and what people may do to them; `claims` has what workers may do.

These two files are the only places where a job changes state:

    validating_files -> queued -> running -> succeeded | failed | cancelled
    running -> pausing -> paused -> queued

Terminal states are final.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CompoundSelect,
    Index,
    Integer,
    String,
    UniqueConstraint,
    func,
    literal,
    select,
    union,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.sql.elements import ColumnElement

from core.errors import InvalidRequest, NotFound
from core.queue import COMPARE, TRAIN, VALIDATE, Ring
from models.tables import event
from models.tables.base import COUNT, Base, Page, database_now, read_page

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
    resolved: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_digest: Mapped[str] = mapped_column(String(64))
    comparison_id: Mapped[str | None] = mapped_column(String(40), index=True)

    # who works on it
    owner: Mapped[str | None] = mapped_column(String(128))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    resume_digest: Mapped[str | None] = mapped_column(String(64))
    gang: Mapped[str | None] = mapped_column(String(255))
    """What jobs have in common that one trainer may train together; None: alone."""

    # how far it is
    created_at: Mapped[float] = mapped_column(default=database_now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    step: Mapped[int] = mapped_column(COUNT, default=0)
    total_steps: Mapped[int | None] = mapped_column(COUNT)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    trained_parameters: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_second: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    usage: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of one that succeeded: `train_seconds`, `tokens_per_second`, `peak_bytes`."""
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of one that succeeded: the last value of each metric."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    result_file: Mapped[str | None] = mapped_column(String(40))
    fine_tuned_model: Mapped[str | None] = mapped_column(String(255))


def add(session: Session, row: Job) -> Job:
    """Put a new job in line for validation and wake a worker after the commit."""
    session.add(row)
    session.flush()
    event.add(session, row.id, message=f"Created fine-tuning job: {row.id}")
    ring(session, VALIDATE, row.id)
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
        query = query.where(_has_label(session, key, value))
    return read_page(session, query, page=page, order=Job.number, key=Job.id)


def _has_label(session: Session, key: str, value: str) -> ColumnElement[bool]:
    """Compare one label with its key as a parameter: a JSON path would need the key escaped."""
    if session.get_bind().dialect.name == "postgresql":
        return func.json_extract_path_text(Job.labels, key) == value
    pairs = func.json_each(Job.labels).table_valued("key", "value")
    return select(1).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value).exists()


def cancel(session: Session, job_id: str, *, tenant: str) -> Job:
    """End a job now; whoever works on it is refused from here on and stops within a second."""
    row = _hold(session, job_id, tenant=tenant)
    if row.state == "cancelled":
        return row  # a client that lost the reply asks again
    _check(row, (*WAITING, *OWNED, "paused"), verb="cancelled")
    _take_away(session, row, state="cancelled", finished_at=database_now())
    ring_comparison(session, row)
    event.add(session, row.id, message="The job was cancelled.")
    return row


def pause(session: Session, job_id: str, *, tenant: str) -> Job:
    """Stop a job so that it can go on later: at once if nobody trains it, else after a save."""
    row = _hold(session, job_id, tenant=tenant)
    if row.state in ("pausing", "paused"):
        return row
    _check(row, (*WAITING, *OWNED), verb="paused")
    if row.state in OWNED:
        session.execute(update(Job).where(Job.id == row.id).values(state="pausing"))
        session.refresh(row)
    else:
        # A check of its files that this cuts short was no failed one.
        attempts = row.attempts if row.state == "queued" else 0
        _take_away(session, row, state="paused", attempts=attempts)
    event.add(session, row.id, message=f"The job is {row.state}.")
    return row


def resume(session: Session, job_id: str, *, tenant: str) -> Job:
    """Put a paused job back in line; it goes on from the step at which it was saved."""
    row = _hold(session, job_id, tenant=tenant)
    if row.state in (*WAITING, "running"):
        return row  # as it was asked for: a client that lost the reply asks again
    _check(row, ("paused",), verb="resumed")
    state = "queued" if row.report else "validating_files"
    _take_away(session, row, state=state)
    event.add(session, row.id, message="The job was resumed.")
    ring(session, TRAIN if state == "queued" else VALIDATE, row.id)
    return row


def _hold(session: Session, job_id: str, *, tenant: str) -> Job:
    """Read a job so that nobody changes it before this transaction ends."""
    row = get(session, job_id, tenant=tenant)
    session.refresh(row, with_for_update=True)  # it may have changed while this waited
    return row


def _check(row: Job, allowed: Sequence[str], *, verb: str) -> None:
    if row.state not in allowed:
        raise InvalidRequest(
            f"A job that is {row.state} cannot be {verb}.", code="invalid_job_state"
        )


def _take_away(session: Session, row: Job, **values: Any) -> None:
    """Change a job and refuse whoever held it from here on."""
    statement = update(Job).where(Job.id == row.id)
    free = {"owner": None, "lease_until": None, "estimated_finish": None}
    session.execute(statement.values(fence=Job.fence + 1, **free, **values))
    session.refresh(row)


def pinned_digests() -> CompoundSelect[Any]:
    """Select all bytes that jobs which have not ended need."""
    columns = (Job.training_digest, Job.validation_digest, Job.parent_digest)
    return union(
        *(
            select(column).where(Job.state.not_in(TERMINAL), column.is_not(None))
            for column in columns
        )
    )


def is_pinned(session: Session, digest: str) -> bool:
    """Say whether a job that has not ended needs these bytes."""
    return bool(session.scalar(select(literal(digest).in_(pinned_digests()))))


def ended_resumes(session: Session, *, limit: int) -> Sequence[tuple[str, str]]:
    """Return ended jobs that still have a resume checkpoint, and its tree, the oldest first."""
    query = select(Job.id, Job.resume_digest).where(
        Job.state.in_(TERMINAL), Job.resume_digest.is_not(None)
    )
    found = session.execute(query.order_by(Job.number).limit(limit))
    return [(row.id, row.resume_digest) for row in found]


def goes_on_from(session: Session, job_id: str, digest: str) -> bool:
    """Say whether this tree is what a job would go on from."""
    query = select(Job.id).where(Job.id == job_id, Job.resume_digest == digest)
    return session.scalar(query) is not None


def forget_resume(session: Session, job_id: str) -> None:
    """Forget the resume checkpoint of an ended job; its tree is gone."""
    session.execute(update(Job).where(Job.id == job_id).values(resume_digest=None))


def count_by_state(session: Session) -> dict[str, int]:
    """Return how many jobs are in each state."""
    rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
    return {state: count for state, count in rows}  # noqa: C416 - Row is not a tuple to mypy


def ring(session: Session, task: str, subject: str) -> None:
    """Wake a worker for a row once this transaction is committed."""
    session.info.setdefault("rings", []).append(Ring(task, subject))


def ring_comparison(session: Session, row: Job) -> None:
    """Wake a worker for the comparison that a job which has ended belongs to, if it does."""
    if row.comparison_id is not None:
        ring(session, COMPARE, row.comparison_id)
