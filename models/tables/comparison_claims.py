"""What a worker may do to a comparison, and only while it holds it; as `claims` is for jobs."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.elements import ColumnElement

from core.errors import StaleFence
from core.queue import COMPARE
from models.comparison import Evaluated
from models.tables.base import Claim, Held, changes_one, database_now, lease_is_over, renew_leases
from models.tables.comparison import OPEN, Comparison
from models.tables.job import TERMINAL, Job, ring


def _is_due(row: type[Comparison]) -> ColumnElement[bool]:
    """Nobody holds it and all of its jobs have ended."""
    unfinished = select(Job.id).where(Job.comparison_id == row.id, Job.state.not_in(TERMINAL))
    return row.state.in_(OPEN) & lease_is_over(row) & ~unfinished.exists()


def due(session: Session) -> bool:
    """Say whether a comparison waits to be evaluated."""
    return session.scalar(select(Comparison.id).where(_is_due(Comparison)).limit(1)) is not None


def take(
    session: Session, *, owner: str, seconds: float, comparison_id: str | None = None
) -> Comparison | None:
    """Take a comparison that is due: the given one, or the oldest."""
    candidate = aliased(Comparison)
    chosen = (
        select(candidate.number)
        .where(_is_due(candidate))
        .order_by(candidate.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=candidate)
    )
    if comparison_id is not None:
        chosen = chosen.where(candidate.id == comparison_id)
    statement = (
        update(Comparison)
        .where(
            Comparison.number == chosen.scalar_subquery(),
            Comparison.state.in_(OPEN),
            lease_is_over(Comparison),
        )
        .values(
            state="evaluating",
            owner=owner,
            fence=Comparison.fence + 1,
            attempts=Comparison.attempts + 1,
            lease_until=database_now() + seconds,
        )
        .returning(Comparison)
    )
    return session.scalars(statement).one_or_none()


def _is_held() -> ColumnElement[bool]:
    return Comparison.state == "evaluating"


def update_owned(session: Session, row: Comparison, **values: Any) -> None:
    """Write to a comparison that this worker holds; `StaleFence` when it does not any more."""
    statement = update(Comparison).where(
        Comparison.id == row.id, Comparison.fence == row.fence, _is_held()
    )
    if not changes_one(session, statement.values(**values)):
        raise StaleFence(f"Comparison {row.id} is no longer this worker's.")


def renew(session: Session, claims: Sequence[Claim], *, seconds: float) -> dict[Claim, Held]:
    """Lengthen the leases of comparisons; return those that are still held."""
    return renew_leases(session, Comparison, claims, held=_is_held(), seconds=seconds)


def is_worked_on(session: Session, comparison_id: str, *, fence: int) -> bool:
    """Say whether the claim with this fence still holds the comparison."""
    query = select(Comparison.id).where(
        Comparison.id == comparison_id, Comparison.fence == fence, _is_held()
    )
    return session.scalar(query) is not None


def keep(session: Session, row: Comparison, label: str, *, found: Evaluated) -> dict[str, Any]:
    """Write down what one model's answers told, so that nobody has to ask it again."""
    measured = {**row.measured, label: msgspec.to_builtins(found)}
    update_owned(session, row, measured=measured, attempts=1)
    return measured


def hand_back(session: Session, row: Comparison) -> None:
    """Let another worker go on; it does not count as an attempt."""
    update_owned(session, row, owner=None, lease_until=None, attempts=Comparison.attempts - 1)
    ring(session, COMPARE, row.id)


def finish(session: Session, row: Comparison, *, state: str, **values: Any) -> None:
    """End a held comparison."""
    free: dict[str, Any] = {"owner": None, "lease_until": None}
    update_owned(session, row, state=state, finished_at=database_now(), **free, **values)


def fail(session: Session, row: Comparison, *, code: str, message: str, **values: Any) -> None:
    """End a held comparison with a typed error."""
    finish(session, row, state="failed", error={"code": code, "message": message}, **values)
