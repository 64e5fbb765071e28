"""The Celery tasks: a message names a row that may be due; the dispatcher claims its row."""

from core.queue import COMPARE, TRAIN, VALIDATE, celery
from worker.dispatch import get_dispatcher


@celery.task(name=VALIDATE)  # type: ignore[untyped-decorator]
def validate(job_id: str) -> None:
    """Check the files of a new job and put it in line."""
    get_dispatcher().validate(job_id)


@celery.task(name=TRAIN)  # type: ignore[untyped-decorator]
def train(job_id: str) -> None:
    """Train a job, then whatever is next in line, while this worker has a free place."""
    get_dispatcher().train(job_id)


@celery.task(name=COMPARE)  # type: ignore[untyped-decorator]
def compare(comparison_id: str) -> None:
    """Ask the results of a comparison whose jobs have ended."""
    get_dispatcher().compare(comparison_id)
