"""The table of a comparison as far as it goes, from its jobs and what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from models.comparison import BASE_LABEL, ComparisonResult, Evaluated, MethodResult, pareto
from models.tables.adapter import Adapter
from models.tables.comparison import Comparison
from models.tables.job import Job

NOT_APPLICABLE = ("no_label_set", "unknown_label")
"""How a classifier's job fails on data whose answers are no labels."""


class _Trained(NamedTuple):
    """A job of a comparison, and the bytes of its adapter while that lives."""

    job: Job
    bytes: int


def assemble(session: Session, row: Comparison) -> ComparisonResult:
    """Return the table: that of the end, or what is known before."""
    (table,) = assemble_all(session, [row])
    return table


def assemble_all(session: Session, rows: Sequence[Comparison]) -> list[ComparisonResult]:
    """Return the table of each comparison; their jobs are read together."""
    unfinished = [row.id for row in rows if row.result is None]
    trained = _read_jobs(session, unfinished)
    return [_table(row, trained) for row in rows]


def _read_jobs(session: Session, comparison_ids: Sequence[str]) -> dict[str, _Trained]:
    """Return the jobs of comparisons by their ids, in one query."""
    result_of_job = and_(
        Adapter.name == Job.fine_tuned_model,
        Adapter.tenant == Job.tenant,
        Adapter.deleted_at.is_(None),
    )
    query = select(Job, Adapter.bytes).outerjoin(Adapter, result_of_job)
    found = session.execute(query.where(Job.comparison_id.in_(comparison_ids)))
    return {job.id: _Trained(job, size or 0) for job, size in found}


def _table(row: Comparison, trained: Mapping[str, _Trained]) -> ComparisonResult:
    if row.result is not None:
        return msgspec.convert(row.result, ComparisonResult)
    methods = (_method_row(row, entry, trained=trained[entry["job"]]) for entry in row.entries)
    rows = [_base_row(row), *methods]
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


def _method_row(row: Comparison, entry: dict[str, Any], *, trained: _Trained) -> MethodResult:
    job = trained.job
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
        artifact_bytes=trained.bytes,
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
