"""API keys: shown once, kept as SHA-256; each speaks for one tenant."""

import hashlib
import re
import secrets
from collections.abc import Sequence

from sqlalchemy import String, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.errors import InvalidRequest, NotFound
from core.ids import new_id
from models.tables.base import Base, changes_one, database_now

TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
LONGEST_NAME = 64


class ApiKey(Base):
    """One key of one tenant."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(32), index=True)
    name: Mapped[str] = mapped_column(String(LONGEST_NAME))
    hint: Mapped[str] = mapped_column(String(8))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(default=database_now())
    revoked_at: Mapped[float | None]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Session, *, tenant: str, name: str, secret: str | None = None
) -> tuple[ApiKey, str]:
    """Add a key and return it with its secret, which nothing can show again."""
    if not TENANT.fullmatch(tenant):
        raise InvalidRequest(
            f"{tenant!r} is no tenant name: lower-case letters, digits and '-', at most 32.",
            code="invalid_tenant",
            param="tenant",
        )
    if len(name) > LONGEST_NAME:
        raise InvalidRequest(
            f"A key's name has at most {LONGEST_NAME} characters, this one {len(name)}.",
            code="invalid_name",
            param="name",
        )
    secret = secret or f"gw-{secrets.token_urlsafe(32)}"
    row = ApiKey(
        id=new_id("key"), tenant=tenant, name=name, hint=secret[-4:], secret_hash=_hash(secret)
    )
    session.add(row)
    session.flush()
    return row, secret


def find_by_secret(session: Session, secret: str) -> ApiKey | None:
    """Return the key that `secret` opens, unless it is unknown or revoked."""
    digest = _hash(secret)
    row = session.scalar(select(ApiKey).where(ApiKey.secret_hash == digest))
    return row if row is not None and row.revoked_at is None else None


def count(session: Session) -> int:
    """Return how many keys there are, revoked ones included."""
    return session.scalar(select(func.count()).select_from(ApiKey)) or 0


def list_all(session: Session) -> Sequence[ApiKey]:
    """Return every key, oldest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at)).all()


def revoke(session: Session, key_id: str) -> None:
    """Close a key for good; requests that carry it are refused from now on."""
    statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    if not changes_one(session, statement.values(revoked_at=database_now())):
        raise NotFound(f"No open key {key_id!r}.", code="key_not_found")
