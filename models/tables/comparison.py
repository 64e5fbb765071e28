"""Comparisons: a set of jobs on equal terms, and what asking their results tells.

    training -> evaluating -> succeeded | failed
    training | evaluating -> cancelled

`comparison_claims` has what workers may do.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, Integer, Select, String, UniqueConstraint, literal, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.errors import InvalidRequest, NotFound
from models.tables import event, job
from models.tables.base import Base, Page, database_now, read_page
from models.tables.job import TERMINAL, Job

OPEN = ("training", "evaluating")


class Comparison(Base):
    """One question: which method is best on these data at this budget."""

    __tablename__ = "comparisons"
    __table_args__ = (UniqueConstraint("tenant", "idempotency_key"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    tenant: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(String(20), default="training", index=True)

    # what was asked for
    base: Mapped[str] = mapped_column(String(64))
    training_file: Mapped[str] = mapped_column(String(40))
    validation_file: Mapped[str] = mapped_column(String(40))
    validation_digest: Mapped[str] = mapped_column(String(64), index=True)
    budget: Mapped[dict[str, Any]] = mapped_column(JSON)
    training: Mapped[dict[str, Any]] = mapped_column(JSON)
    metric: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int] = mapped_column(Integer)
    suffix: Mapped[str | None] = mapped_column(String(64))
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))
    max_validation_rows: Mapped[int] = mapped_column(Integer)
    entries: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """`label`, `method` and `job` of each, in order."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_digest: Mapped[str] = mapped_column(String(64))

    # who works on it
    owner: Mapped[str | None] = mapped_column(String(128))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)

    # what was found
    created_at: Mapped[float] = mapped_column(default=database_now())
    finished_at: Mapped[float | None]
    measured_by: Mapped[str | None] = mapped_column(String(16))
    """The metric that `auto` became."""
    measured: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """An `Evaluated` for each label that is done."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    plots: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    """Digests by name, such as `parameters.svg`."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


def add(session: Session, row: Comparison, *, jobs: Sequence[Job]) -> Comparison:
    """Add a comparison and its jobs."""
    session.add(row)
    session.flush()
    for one in jobs:
        one.comparison_id = row.id
        job.add(session, one)
    return row


def get(session: Session, comparison_id: str, *, tenant: str) -> Comparison:
    """Return a tenant's comparison, or raise `NotFound`."""
    row = session.scalar(
        select(Comparison).where(Comparison.id == comparison_id, Comparison.tenant == tenant)
    )
    if row is None:
        raise NotFound(f"No such comparison: {comparison_id!r}.", code="comparison_not_found")
    return row


def find_by_idempotency_key(session: Session, key: str, *, tenant: str) -> Comparison | None:
    """Return the comparison that an earlier request with the same key made."""
    return session.scalar(
        select(Comparison).where(Comparison.idempotency_key == key, Comparison.tenant == tenant)
    )


def list_page(session: Session, *, tenant: str, page: Page) -> tuple[Sequence[Comparison], bool]:
    """Return a page of a tenant's comparisons."""
    query = select(Comparison).where(Comparison.tenant == tenant)
    return read_page(session, query, page=page, order=Comparison.number, key=Comparison.id)


def list_jobs(session: Session, comparison_id: str) -> Sequence[Job]:
    """Return the jobs of a comparison, in order."""
    query = select(Job).where(Job.comparison_id == comparison_id)
    return session.scalars(query.order_by(Job.number)).all()


def cancel(session: Session, comparison_id: str, *, tenant: str) -> Comparison:
    """End a comparison and those of its jobs that have not ended."""
    row = get(session, comparison_id, tenant=tenant)
    session.refresh(row, with_for_update=True)
    if row.state == "cancelled":
        return row  # a client that lost the reply asks again
    if row.state not in OPEN:
        raise InvalidRequest(
            f"A comparison that has {row.state} cannot be cancelled.",
            code="invalid_comparison_state",
        )
    ended: dict[str, Any] = {"state": "cancelled", "owner": None, "lease_until": None}
    session.execute(
        update(Comparison)
        .where(Comparison.id == row.id)
        .values(fence=Comparison.fence + 1, finished_at=database_now(), **ended)
    )
    session.refresh(row)
    for one in list_jobs(session, row.id):
        session.refresh(one, with_for_update=True)  # it may end while this waits
        if one.state not in TERMINAL:
            event.add(session, one.id, message=f"Its comparison {row.id} was cancelled.")
            job.cancel(session, one.id, tenant=tenant)
    return row


def pinned_digests() -> Select[str]:
    """Select all bytes of files that comparisons which have not ended need."""
    return select(Comparison.validation_digest).where(Comparison.state.in_(OPEN))


def is_pinned(session: Session, digest: str) -> bool:
    """Say whether a comparison that has not ended needs these bytes of a file."""
    return bool(session.scalar(select(literal(digest).in_(pinned_digests()))))
