"""Checkpoints that users see and can call as models."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, ForeignKey, Integer, String, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.tables.base import COUNT, Base, Page, database_now, read_page


class Checkpoint(Base):
    """The adapter as it was at one step of a job."""

    __tablename__ = "checkpoints"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    tenant: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(255), unique=True)
    step: Mapped[int] = mapped_column(COUNT)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(default=database_now())
    deleted_at: Mapped[float | None]


def find(session: Session, name: str, *, tenant: str) -> Checkpoint | None:
    """Return a tenant's living checkpoint by its model name."""
    return session.scalar(
        select(Checkpoint).where(
            Checkpoint.name == name, Checkpoint.tenant == tenant, Checkpoint.deleted_at.is_(None)
        )
    )


def find_step(session: Session, job_id: str, *, step: int) -> Checkpoint | None:
    """Return the checkpoint of a job at a step, if it was saved already."""
    return session.scalar(
        select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step)
    )


def list_page(session: Session, job_id: str, *, page: Page) -> tuple[Sequence[Checkpoint], bool]:
    """Return a page of a job's living checkpoints."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    order, key = Checkpoint.number, Checkpoint.id
    living = (Checkpoint.deleted_at.is_(None),)
    return read_page(session, query, page=page, order=order, key=key, shown=living)


def delete(session: Session, row: Checkpoint) -> None:
    """Hide a checkpoint at once; its bytes go when nothing else has the same ones."""
    session.execute(
        update(Checkpoint).where(Checkpoint.number == row.number).values(deleted_at=database_now())
    )


def is_used(session: Session, digest: str) -> bool:
    """Say whether a living checkpoint has this tree."""
    query = select(Checkpoint.number).where(
        Checkpoint.digest == digest, Checkpoint.deleted_at.is_(None)
    )
    return session.scalar(query.limit(1)) is not None
