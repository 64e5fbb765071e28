"""Adapters that can be called: a name that never changes its meaning, and a tree of bytes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, String, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.errors import NotFound
from models.tables.base import Base, database_now


class Adapter(Base):
    """A published result of a job, or one that somebody brought."""

    __tablename__ = "adapters"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    tenant: Mapped[str] = mapped_column(String(32), index=True)
    base: Mapped[str] = mapped_column(String(64))
    method: Mapped[dict[str, Any]] = mapped_column(JSON)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    parameters: Mapped[int] = mapped_column(BigInteger)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    source: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of an imported one: its file's name, what form it had, what it says of itself."""
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of an imported one: what the engine found in it."""
    created_at: Mapped[float] = mapped_column(default=database_now())
    deleted_at: Mapped[float | None]


def name_of(*, base: str, tenant: str, suffix: str, letters: str) -> str:
    """Return what an adapter is called by; `letters` tell it from others."""
    return f"ft:{base}:{tenant}:{suffix}:{letters}"


def find(session: Session, name: str, *, tenant: str) -> Adapter | None:
    """Return a tenant's living adapter by name."""
    return session.scalar(
        select(Adapter).where(
            Adapter.name == name, Adapter.tenant == tenant, Adapter.deleted_at.is_(None)
        )
    )


def add(session: Session, row: Adapter) -> Adapter:
    """Add an adapter."""
    session.add(row)
    session.flush()
    return row


def list_all(session: Session, *, tenant: str) -> Sequence[Adapter]:
    """Return a tenant's living adapters, newest first."""
    query = select(Adapter).where(Adapter.tenant == tenant, Adapter.deleted_at.is_(None))
    return session.scalars(query.order_by(Adapter.number.desc())).all()


def delete(session: Session, name: str, *, tenant: str) -> Adapter:
    """Hide an adapter at once; its bytes go when nothing else has the same ones."""
    row = find(session, name, tenant=tenant)
    if row is None:
        raise NotFound(f"The model {name!r} does not exist.", code="model_not_found", param="model")
    session.execute(
        update(Adapter).where(Adapter.number == row.number).values(deleted_at=database_now())
    )
    return row


def is_used(session: Session, digest: str) -> bool:
    """Say whether a living adapter has this tree."""
    query = select(Adapter.number).where(Adapter.digest == digest, Adapter.deleted_at.is_(None))
    return session.scalar(query.limit(1)) is not None
