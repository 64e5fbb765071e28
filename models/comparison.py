"""What a comparison of methods finds: a row a method, as stored, shown, printed and drawn."""

from typing import Any

import msgspec


class Measured(msgspec.Struct, frozen=True):
    """A value with its 95 % interval by bootstrap over the validation rows."""

    value: float
    low: float
    high: float


class MethodResult(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one data set, at the budget that all methods had."""

    label: str
    """The kind and what sets it apart, as in `lora r=16`; distinct within a comparison."""
    method: dict[str, Any]
    job: str | None = None
    """None for the base as it is."""
    model: str | None = None
    status: str = "queued"
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


class ComparisonResult(msgspec.Struct, frozen=True, kw_only=True):
    """The table; `pareto` holds labels that no other row beats in quality at fewer parameters."""

    metric: str
    """`accuracy`, `exact_match` or `bleu`; more is better."""
    rows: list[MethodResult]
    pareto: list[str] = []
