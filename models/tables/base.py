"""What all tables share: names of constraints, the database's own clock, cursor pages."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Double,
    Integer,
    MetaData,
    Select,
    Update,
    delete,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

RowT = TypeVar("RowT", bound="Base")
COUNT = BigInteger().with_variant(Integer(), "sqlite")
"""Of what may be more than 32 bits count; SQLite's integers have 64."""
Claim: TypeAlias = tuple[str, int]
"""The id of a row that is held, and the fence of its claim."""


class Held(NamedTuple):
    """What is found of a row that a claim still holds."""

    state: str
    renewed: bool
    """Whether its lease was lengthened."""


class Base(DeclarativeBase):
    """Declarative base with predictable constraint names, which Alembic needs to change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double()}


class database_now(FunctionElement[float]):  # noqa: N801 - written like the SQL function it is
    """Seconds since 1970 by the database's clock, the only clock that leases are measured by."""

    type = Double()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite_now(_element: FunctionElement[float], _compiler: SQLCompiler, **_: Any) -> str:
    return "unixepoch('subsec')"


@compiles(database_now, "postgresql")
def _postgresql_now(_element: FunctionElement[float], _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def read_clock(session: Session) -> float:
    """Return the database's time in seconds since 1970."""
    return session.scalar(select(database_now())) or 0.0


def lease_is_over(row: Any) -> ColumnElement[bool]:
    """Say in SQL whether nobody holds a row: one with the column `lease_until`."""
    over: ColumnElement[bool] = or_(row.lease_until.is_(None), row.lease_until < database_now())
    return over


def changes_one(session: Session, statement: Update) -> bool:
    """Execute an update that is guarded by its condition; say whether it met its row."""
    result: Any = session.execute(statement)  # the row count is missing from the declared type
    return bool(result.rowcount == 1)


def renew_leases(
    session: Session,
    table: Any,
    claims: Sequence[Claim],
    *,
    held: ColumnElement[bool],
    seconds: float,
) -> dict[Claim, Held]:
    """Lengthen the leases of those claims that still hold their rows; return these.

    `held` says in SQL whether a row is in a state in which its fence protects it. What has been
    given back is nobody's, though its fence may still be that of the claim. A row that somebody
    else is writing to waits for the next time, so that it holds up no other.
    """
    ours = select(table.id, table.fence, table.state).where(
        tuple_(table.id, table.fence).in_(claims), table.owner.is_not(None), held
    )

    def find(rows: Select[Any]) -> dict[Claim, str]:
        return {(found.id, found.fence): found.state for found in session.execute(rows)}

    free = find(ours.with_for_update(skip_locked=True, key_share=True))
    names = [name for name, _ in free]
    session.execute(
        update(table).where(table.id.in_(names)).values(lease_until=database_now() + seconds)
    )
    return {claim: Held(state, claim in free) for claim, state in find(ours).items()}


def hold_writers(session: Session, table: type[Base]) -> None:
    """Let nobody add a row until this transaction ends (SQLite's writers queue anyway).

    It may be silent for as long as it takes: a store deletes bytes meanwhile, and a row that came
    in before they are gone would live on without them.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        session.execute(text(f"LOCK TABLE {table.__tablename__} IN EXCLUSIVE MODE"))


def dead_digests(
    session: Session, table: Any, *, pinned: Sequence[Select[Any] | CompoundSelect[Any]], limit: int
) -> Sequence[str]:
    """Return the digests of deleted rows that nobody needs any more, the oldest first.

    `pinned` selects those that somebody needs: they stay, however many, and are in nobody's way.
    """
    query = select(table.digest).where(table.deleted_at.is_not(None))
    for needed in pinned:
        query = query.where(table.digest.not_in(needed))
    query = query.group_by(table.digest).order_by(func.min(table.number))
    return session.scalars(query.limit(limit)).all()


def forget_dead(session: Session, table: Any, digest: str) -> None:
    """Remove the deleted rows that have these bytes."""
    session.execute(delete(table).where(table.digest == digest, table.deleted_at.is_not(None)))


class Page(NamedTuple):
    """A cursor: how many rows, after which id, newest first unless `ascending`."""

    limit: int
    after: str | None = None
    ascending: bool = False


def read_page(
    session: Session,
    query: Select[RowT],
    *,
    page: Page,
    order: InstrumentedAttribute[int],
    key: InstrumentedAttribute[str],
    shown: Sequence[ColumnElement[bool]] = (),
) -> tuple[Sequence[RowT], bool]:
    """Return the rows after the cursor and whether more follow.

    A cursor may name a row of the query that is not `shown` any more: who deletes while he pages
    goes on. One whose row is gone gives an empty page, which is how the SDK learns to stop.
    """
    if page.after is not None:
        start = session.scalar(query.with_only_columns(order).where(key == page.after))
        if start is None:
            return [], False
        query = query.where(order > start if page.ascending else order < start)
    query = query.where(*shown).order_by(order.asc() if page.ascending else order.desc())
    rows = session.scalars(query.limit(page.limit + 1)).all()
    return rows[: page.limit], len(rows) > page.limit
