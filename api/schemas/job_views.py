"""Fine-tuning jobs: what is shown, in OpenAI's shape with our own fields under one key."""

from time import time
from typing import Any, Literal

from pydantic import Field

from api.schemas.common import Reply
from api.schemas.jobs import HYPERPARAMETERS
from models.tables.checkpoint import Checkpoint
from models.tables.event import Event
from models.tables.job import Job


class JobError(Reply):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobDetails(Reply):
    """What OpenAI's object has no place for."""

    base: str
    step: int
    total_steps: int | None
    tokens_per_second: float | None
    eta_seconds: float | None
    trained_parameters: int | None
    training: dict[str, Any]
    data: dict[str, Any] | None
    attempts: int
    started_at: int | None
    problems: list[dict[str, Any]]


class JobObject(Reply):
    """One fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: str
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    user_provided_suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[Any] = Field(default_factory=list)
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    error: JobError | None
    peft: dict[str, Any]
    graftwork: JobDetails

    @classmethod
    def of(cls, row: Job) -> "JobObject":
        """Show a row."""
        hyperparameters = _hyperparameters(row)
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            finished_at=_seconds(row.finished_at),
            estimated_finish=_seconds(row.estimated_finish),
            status=row.state,
            model=row.model,
            fine_tuned_model=row.fine_tuned_model,
            organization_id=row.tenant,
            training_file=row.training_file,
            validation_file=row.validation_file,
            result_files=[row.result_file] if row.result_file else [],
            trained_tokens=row.trained_tokens,
            seed=row.seed,
            user_provided_suffix=row.suffix,
            metadata=row.labels,
            hyperparameters=hyperparameters,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": hyperparameters},
            },
            error=_error(row),
            peft=row.method,
            graftwork=_details(row),
        )


class EventObject(Reply):
    """One line of a job's history."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: Event) -> "EventObject":
        """Show a row."""
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            level=row.level,
            message=row.message,
            type=row.type,
            data=row.data,
        )


class CheckpointObject(Reply):
    """The adapter as it was at one step; its name can be called."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int

    @classmethod
    def of(cls, row: Checkpoint) -> "CheckpointObject":
        """Show a row."""
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            fine_tuned_model_checkpoint=row.name,
            fine_tuning_job_id=row.job_id,
            metrics={"step": row.step, **row.metrics},
            step_number=row.step,
        )


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


def _hyperparameters(row: Job) -> dict[str, Any]:
    """Return OpenAI's three: what was asked for, and numbers for `auto` once the data is known.

    Where tokens or seconds end the run, no number of epochs does: `auto` stays.
    """
    numbers = {"learning_rate_multiplier": 1.0, **row.resolved} if row.resolved else {}
    if row.loop.get("max_tokens") or row.loop.get("max_seconds"):
        numbers.pop("n_epochs", None)
    asked = {name: row.loop.get(name, "auto") for name in HYPERPARAMETERS}
    return {
        name: numbers.get(name, value) if value == "auto" else value
        for name, value in asked.items()
    }


def _error(row: Job) -> JobError | None:
    if not row.error:
        return None
    return JobError(
        code=row.error["code"], message=row.error["message"], param=row.error.get("param")
    )


def _details(row: Job) -> JobDetails:
    eta = None if row.estimated_finish is None else max(0.0, row.estimated_finish - time())
    return JobDetails(
        base=row.base,
        step=row.step,
        total_steps=row.total_steps,
        tokens_per_second=row.tokens_per_second,
        eta_seconds=eta if eta is None else round(eta, 1),
        trained_parameters=row.trained_parameters,
        training={
            key: value
            for key, value in (row.resolved or row.loop).items()
            if key not in HYPERPARAMETERS
        },
        data=row.report,
        attempts=row.attempts,
        started_at=_seconds(row.started_at),
        problems=(row.error or {}).get("problems", []),
    )
