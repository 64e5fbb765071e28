"""Rows for tests, each with only what the test cares about said by the test."""

from typing import Any

from sqlalchemy.orm import Session

from core.ids import new_id
from models.tables import comparison, job
from models.tables.comparison import Comparison
from models.tables.job import Job


def make_job(session: Session, **values: Any) -> Job:
    """Add a job as the api adds one."""
    defaults: dict[str, Any] = {
        "id": new_id("ftjob"),
        "tenant": "acme",
        "model": "tiny",
        "base": "tiny",
        "training_file": new_id("file"),
        "training_digest": "0" * 64,
        "seed": 7,
        "method": {"type": "lora"},
        "loop": {},
        "request_digest": "1" * 64,
    }
    return job.add(session, Job(**{**defaults, **values}))


def make_queued_job(session: Session, **values: Any) -> Job:
    """Add a job whose files are validated."""
    return make_job(session, state="queued", report={"rows": 3, "format": "chat"}, **values)


def make_comparison(session: Session, **values: Any) -> Comparison:
    """Add a comparison that has no jobs yet."""
    defaults: dict[str, Any] = {
        "id": new_id("ftcmp"),
        "tenant": "acme",
        "base": "tiny",
        "training_file": "file-t",
        "validation_file": "file-v",
        "validation_digest": "0" * 64,
        "budget": {"tokens": 600},
        "training": {},
        "metric": "auto",
        "seed": 3,
        "max_validation_rows": 100,
        "entries": [],
        "request_digest": "1" * 64,
    }
    return comparison.add(session, Comparison(**{**defaults, **values}), jobs=[])
