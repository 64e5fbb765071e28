"""The table of a comparison as far as it goes, from its jobs and what was measured."""

from typing import Any

import msgspec
from sqlalchemy.orm import Session

from models.comparison import BASE_LABEL, ComparisonResult, Evaluated, MethodResult, pareto
from models.tables import adapter, comparison
from models.tables.comparison import Comparison
from models.tables.job import Job

NOT_APPLICABLE = ("no_label_set", "unknown_label")
"""How a classifier's job fails on data whose answers are no labels."""


def assemble(session: Session, row: Comparison) -> ComparisonResult:
    """Return the table: that of the end, or what is known before."""
    if row.result is not None:
        return msgspec.convert(row.result, ComparisonResult)
    jobs = {one.id: one for one in comparison.list_jobs(session, row.id)}
    rows = [
        _base_row(row),
        *(_method_row(session, row, entry=entry, job=jobs[entry["job"]]) for entry in row.entries),
    ]
    return ComparisonResult(
        metric=row.measured_by or row.metric,
        rows=rows,
        pareto=pareto(rows),
        base=row.base,
        budget=row.budget,
    )


def _base_row(row: Comparison) -> MethodResult:
    found = _found(row, BASE_LABEL)
    status = "queued" if row.state == "training" else row.state
    return MethodResult(
        label=BASE_LABEL,
        method={},
        model=row.base,
        seconds=0.0,
        **_measured(found, status=status),
    )


def _method_row(
    session: Session, row: Comparison, *, entry: dict[str, Any], job: Job
) -> MethodResult:
    made = (
        adapter.find(session, job.fine_tuned_model, tenant=row.tenant)
        if job.fine_tuned_model
        else None
    )
    usage = job.usage or {}
    peak = usage.get("peak_bytes")
    ended = _ended(job) or _measured(
        _found(row, entry["label"]),
        status=_status(row, job),
    )
    return MethodResult(
        label=entry["label"],
        method=entry["method"],
        job=job.id,
        model=job.fine_tuned_model,
        loss=(job.metrics or {}).get("full_valid_loss"),
        parameters=job.trained_parameters or 0,
        artifact_bytes=made.bytes if made else 0,
        trained_tokens=job.trained_tokens or 0,
        seconds=usage.get("train_seconds"),
        tokens_per_second=usage.get("tokens_per_second"),
        peak_bytes=None if peak is None else int(peak),
        **ended,
    )


def _status(row: Comparison, job: Job) -> str:
    if job.state != "succeeded":
        return job.state
    return "evaluating" if row.state == "evaluating" else "trained"


def _found(row: Comparison, label: str) -> Evaluated | None:
    found = row.measured.get(label)
    return None if found is None else msgspec.convert(found, Evaluated)


def _ended(job: Job) -> dict[str, Any] | None:
    """Return how a job ended that left nothing to ask."""
    if job.state not in ("failed", "cancelled"):
        return None
    error = job.error or {}
    unsuitable = error.get("code") in NOT_APPLICABLE
    return {
        "status": "not_applicable" if unsuitable else job.state,
        "error": error.get("message"),
    }


def _measured(found: Evaluated | None, *, status: str) -> dict[str, Any]:
    if found is None:
        return {"status": status}
    return {
        "status": "failed" if found.error else "done",
        "error": found.error,
        "quality": found.quality,
        "serving_overhead": found.serving_overhead,
        "answers": found.answers,
    }
