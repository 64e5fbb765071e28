"""How long rows waited for their next token, in each of the phases of a run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Phase(NamedTuple):
    """A stretch of time in which the same thing went on."""

    name: str
    began: float
    ended: float


QUIET, BUSY = "quiet", "busy"


def gaps_by_phase(
    arrivals: Sequence[Sequence[float]], phases: Sequence[Phase]
) -> dict[str, list[float]]:
    """Return the gaps between tokens of quiet phases and of busy ones.

    A gap that reaches into a busy phase is a busy one; of a quiet phase are those that lie in one.
    """
    gaps: dict[str, list[float]] = {QUIET: [], BUSY: []}
    for times in arrivals:
        for earlier, later in pairwise(times):
            touched = [phase for phase in phases if phase.began < later and earlier < phase.ended]
            whole = any(phase.began <= earlier and later <= phase.ended for phase in touched)
            if any(phase.name == BUSY for phase in touched):
                gaps[BUSY].append(later - earlier)
            elif whole:
                gaps[QUIET].append(later - earlier)
    return gaps


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    place = max(0, -(-len(ordered) * share // 1) - 1)
    return ordered[int(place)]
