"""What happened to a job, in order: messages for people and metrics for curves."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, ForeignKey, Integer, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.ids import new_id
from models.tables.base import Base, Page, database_now, read_page


class Event(Base):
    """One line of a job's history."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[float] = mapped_column(default=database_now())
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


def add(
    session: Session,
    job_id: str,
    *,
    message: str,
    level: str = "info",
    type: str = "message",  # noqa: A002 - the API's word
    data: dict[str, Any] | None = None,
) -> None:
    """Append to a job's history."""
    session.add(
        Event(
            id=new_id("ftevent"), job_id=job_id, level=level, type=type, message=message, data=data
        )
    )
    session.flush()


def is_last(session: Session, job_id: str, *, message: str) -> bool:
    """Say whether this is the last that was told of a job."""
    last = select(Event.message).where(Event.job_id == job_id).order_by(Event.number.desc())
    return session.scalar(last.limit(1)) == message


def told_metrics(session: Session, job_id: str) -> set[tuple[int, frozenset[str]]]:
    """Return of which steps a job's metrics were told, and which; it reads all of them."""
    told = select(Event.data).where(Event.job_id == job_id, Event.type == "metrics")
    return {(data["step"], frozenset(data) - {"step"}) for data in session.scalars(told) if data}


def list_page(session: Session, job_id: str, *, page: Page) -> tuple[Sequence[Event], bool]:
    """Return a page of a job's events."""
    query = select(Event).where(Event.job_id == job_id)
    return read_page(session, query, page=page, order=Event.number, key=Event.id)
