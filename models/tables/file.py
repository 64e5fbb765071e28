"""Uploaded and produced files: rows that point at blobs by hash."""

from collections.abc import Sequence

from sqlalchemy import BigInteger, Integer, String, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.errors import NotFound
from models.tables.base import Base, Page, database_now, read_page


class File(Base):
    """One file of one tenant; a deleted one stays as a tombstone until its blob is collected."""

    __tablename__ = "files"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    tenant: Mapped[str] = mapped_column(String(32), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float] = mapped_column(default=database_now())
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]


def get(session: Session, file_id: str, *, tenant: str, param: str | None = None) -> File:
    """Return a living file of `tenant`, or raise `NotFound`."""
    row = session.scalar(
        select(File).where(
            File.id == file_id,
            File.tenant == tenant,
            File.deleted_at.is_(None),
            File.expires_at.is_(None) | (File.expires_at > database_now()),
        )
    )
    if row is None:
        raise NotFound(f"No such file: {file_id!r}.", code="file_not_found", param=param)
    return row


def add(session: Session, row: File, *, lifetime: int | None) -> None:
    """Add a file that ends, if a lifetime is given, that many seconds after its creation."""
    session.add(row)
    session.flush()
    if lifetime is not None:
        ends = update(File).where(File.number == row.number)
        session.execute(ends.values(expires_at=File.created_at + lifetime))
        session.refresh(row)


def list_page(
    session: Session, *, tenant: str, page: Page, purpose: str | None
) -> tuple[Sequence[File], bool]:
    """Return a page of a tenant's living files."""
    query = select(File).where(File.tenant == tenant)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    living = (
        File.deleted_at.is_(None),
        File.expires_at.is_(None) | (File.expires_at > database_now()),
    )
    return read_page(session, query, page=page, order=File.number, key=File.id, shown=living)


def delete(session: Session, file_id: str, *, tenant: str) -> None:
    """Hide a file at once; its bytes go when no job needs them any more."""
    row = get(session, file_id, tenant=tenant)
    session.execute(update(File).where(File.id == row.id).values(deleted_at=database_now()))


def expire(session: Session) -> None:
    """Turn files past their time into tombstones."""
    session.execute(
        update(File)
        .where(File.deleted_at.is_(None), File.expires_at <= database_now())
        .values(deleted_at=database_now())
    )


def is_used(session: Session, digest: str) -> bool:
    """Say whether a living file has these bytes."""
    query = select(File.id).where(File.digest == digest, File.deleted_at.is_(None)).limit(1)
    return session.scalar(query) is not None
