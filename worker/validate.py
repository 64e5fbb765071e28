"""The first look at a job's files: every row is read once before a second of compute is spent."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from core.database import Database
from core.errors import GraftworkError, InvalidData, StaleFence, StorageFull, Unavailable
from core.settings import Settings
from core.store import Store
from models import dataset
from models.answers import check_answers
from models.gang import gang_of
from models.loop_request import LoopRequest, resolve
from models.nn.methods import parse_method
from models.nn.methods.base import Method
from models.spec import LoopSpec
from models.tables import claims
from models.tables.job import Job

log = structlog.get_logger(__name__)


def validate_files(row: Job, *, settings: Settings, database: Database, store: Store) -> None:
    """Move an owned job from `validating_files` to `queued`, or to `failed` with its problems.

    After a fault of the disk, or of the worker itself, it stays, and is tried again when its lease
    is over, up to a limit; while the store is away, without one.
    """
    folder = settings.work_folder / f"{row.id}-{row.fence}"
    most = settings.worker.max_attempts
    try:
        if row.attempts > most:
            raise GraftworkError(_give_up("The worker vanished", most), code="too_many_attempts")
        _validate(row, folder=folder, database=database, store=store)
    except StaleFence:
        return  # cancelled meanwhile
    except Unavailable:
        with suppress(StaleFence, Unavailable, StorageFull), database.unit_of_work() as session:
            claims.update_owned(session, row, attempts=0)
    except (StorageFull, OSError) as error:
        log.warning("the disk failed", job=row.id, error=str(error))
        if row.attempts >= most:
            said = _give_up("The worker could not write to its disk", row.attempts)
            _refuse(row, StorageFull(said), database=database)
    except InvalidData as error:
        _refuse(row, error, database=database, problems=error.problems, report=error.report)
    except GraftworkError as error:
        _refuse(row, error, database=database)
    except Exception:
        log.exception("validation failed unexpectedly", job=row.id)
        fault = GraftworkError("The job's files could not be checked; this is the server's fault.")
        _refuse(row, fault, database=database)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _validate(row: Job, *, folder: Path, database: Database, store: Store) -> None:
    method = parse_method(row.method)
    report = _look(row, method, store=store, folder=folder)
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    loop = resolve(LoopRequest(**row.loop), method=method, rows=report["rows"])
    gang = _gang_of(row, method, loop, rows=report["rows"], sizes=sizes)
    with database.unit_of_work() as session:
        claims.validated(session, row, report=report, resolved=loop.model_dump(), gang=gang)


def _give_up(reason: str, attempts: int) -> str:
    return f"{reason}; gave up after {attempts} attempts. Ask the server's operator."


def _gang_of(
    row: Job, method: Method, loop: LoopSpec, *, rows: int, sizes: Sequence[int]
) -> str | None:
    """Return what the job shares with those it may be trained with.

    What a comparison measures, such as seconds and memory, is a job's own only where it is alone.
    """
    if row.comparison_id is not None:
        return None
    training_bytes, *_ = sizes
    return gang_of(
        row.base, method, loop, rows=rows, training_bytes=training_bytes, all_bytes=sum(sizes)
    )


def _refuse(
    row: Job,
    error: GraftworkError,
    *,
    database: Database,
    problems: Sequence[dict[str, Any]] = (),
    report: dict[str, Any] | None = None,
) -> None:
    with suppress(StaleFence, Unavailable, StorageFull), database.unit_of_work() as session:
        claims.fail(
            session,
            row,
            code=error.code,
            message=error.message,
            param=error.param,
            problems=problems,
            report=report,
        )


def _look(row: Job, method: Method, *, store: Store, folder: Path) -> dict[str, Any]:
    """Read the job's files as its method will; return the report on the training file."""
    training = store.fetch_file(row.training_digest, folder / "training.jsonl")
    report = _inspect(training, param="training_file")
    validation = None
    if row.validation_digest:
        validation = store.fetch_file(row.validation_digest, folder / "validation.jsonl")
        report["validation_rows"] = _inspect(validation, param="validation_file")["rows"]
    check_answers(method, training, validation)
    return report


def _inspect(path: Path, *, param: str) -> dict[str, Any]:
    """Read a whole file; raise `InvalidData` with the first problems if it has any."""
    report = dataset.inspect(path)
    if report.problem_counts:
        raise InvalidData(
            report.summary(),
            param=param,
            problems=report.problem_dicts(),
            report=report.as_dict(),
        )
    return report.as_dict()
