"""What must hold before two speeds are compared: that both sides did the same work."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


class Unequal(RuntimeError):
    """Both sides were timed, but not on the same work: there is no ratio."""


@dataclass(frozen=True)
class Bound:
    """How far two curves may be apart, relative to the second."""

    mean: float
    most: float


def check_curves(
    ours: Sequence[float], theirs: Sequence[float], *, bound: Bound, what: str
) -> dict[str, Any]:
    """Return how far two curves are apart; `Unequal` if that is beyond `bound`."""
    if len(ours) != len(theirs) or not ours:
        raise Unequal(f"{what}: {len(ours)} steps against {len(theirs)}.")
    if not all(map(isfinite, [*ours, *theirs])):
        raise Unequal(f"{what}: a value is not finite: {ours} against {theirs}.")
    apart = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True)]
    found = {"mean": round(sum(apart) / len(apart), 5), "most": round(max(apart), 5)}
    if found["mean"] > bound.mean or found["most"] > bound.most:
        raise Unequal(f"{what}: {found}, beyond {asdict(bound)}: {ours} against {theirs}.")
    return {**found, "bound": asdict(bound)}


def check_same(ours: object, theirs: object, *, what: str) -> None:
    """`Unequal` unless both are the same."""
    if ours != theirs:
        raise Unequal(f"{what}: {ours!r} against {theirs!r}.")
