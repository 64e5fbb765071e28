"""What a comparison of methods finds: a row a method, as stored, shown, printed and drawn."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

BASE_LABEL = "base"
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Measured(msgspec.Struct, frozen=True):
    """A value with its 95 % interval by bootstrap over the validation rows."""

    value: float
    low: float
    high: float


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """What asking one model told of it; `error` says why it could not be asked."""

    quality: Measured | None = None
    serving_overhead: float | None = None
    answers: str | None = None
    error: str | None = None


class MethodResult(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one data set, at the budget that all methods had."""

    label: str
    """The kind and what sets it apart, as in `lora rank=8`; distinct within a comparison."""
    method: dict[str, Any]
    job: str | None = None
    """None for the base as it is."""
    model: str | None = None
    status: str = "queued"
    """The job's; then `trained`, `evaluating`, and at last `done`, `failed` or `not_applicable`."""
    error: str | None = None
    quality: Measured | None = None
    loss: float | None = None
    """Mean validation loss of a labelled token, or of a label; None where it has none."""
    parameters: int = 0
    artifact_bytes: int = 0
    trained_tokens: int = 0
    seconds: float | None = None
    """Training, base load not included."""
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    serving_overhead: float | None = None
    """Time of a served batch under this adapter over that of the base."""
    answers: str | None = None
    """The file of what it answered, one JSON object a question."""


class ComparisonResult(msgspec.Struct, frozen=True, kw_only=True):
    """The table; `pareto` holds labels that no other row beats in quality at fewer parameters."""

    metric: str
    """`accuracy`, `exact_match` or `bleu`; more is better."""
    rows: list[MethodResult]
    pareto: list[str] = []
    base: str | None = None
    budget: dict[str, float] | None = None
    """What each method was trained for: `tokens` or `seconds`."""


def describe_budget(budget: Mapping[str, float]) -> str:
    """Return in words how much each method was trained."""
    [(unit, amount)] = budget.items()
    return f"{amount:,.0f} {unit} each"


def shorten(amount: float) -> tuple[str, str]:
    """Return an amount in three digits, and the prefix of the unit that they count."""
    for size, prefix in _PREFIXES:
        if amount >= size:
            return f"{amount / size:.3g}", prefix
    return f"{amount:.3g}", ""


class Cost(NamedTuple):
    """What a row costs and what it is worth."""

    label: str
    cost: float
    quality: float


def front(costs: Iterable[Cost]) -> list[str]:
    """Return the labels of those than which no other is as cheap and as good, cheapest first."""
    kept: list[Cost] = []
    for one in sorted(costs, key=lambda item: (item.cost, -item.quality)):
        if not kept or one.quality > kept[-1].quality:
            kept.append(one)
    return [one.label for one in kept]


def pareto(rows: Sequence[MethodResult]) -> list[str]:
    """Return the front of quality against trained parameters."""
    return front(
        Cost(row.label, row.parameters, row.quality.value)
        for row in rows
        if row.quality is not None
    )
