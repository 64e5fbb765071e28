"""What a trainer is given: a folder with its files, its order, and nothing else."""

import tempfile
from pathlib import Path

import msgspec
import structlog

from core.bases import read_manifest
from core.cores import available
from core.errors import Corrupt, NotFound
from core.settings import WorkerSettings
from core.store import Store
from models.spec import TrainOrder
from models.tables.job import Job

log = structlog.get_logger(__name__)


def write_order(
    row: Job, *, folder: Path, base_folder: Path, store: Store, settings: WorkerSettings
) -> None:
    """Fetch the job's files from the store into `folder` and write `job.json` beside them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    base = read_manifest(base_folder)

    validation = row.validation_digest
    parent = row.parent_digest
    order = TrainOrder(
        job_id=row.id,
        spec={"base": row.base, "method": row.method, "loop": row.resolved, "seed": row.seed},
        base_folder=str(base_folder),
        training_file=str(store.fetch_file(row.training_digest, folder / "training.jsonl")),
        validation_file=str(store.fetch_file(validation, folder / "validation.jsonl"))
        if validation
        else None,
        parent_folder=str(store.fetch_tree(parent, folder / "parent")) if parent else None,
        resume_folder=_fetch_resume(row, folder=folder / "resume", store=store),
        work_folder=str(folder / "out"),
        resume_seconds=settings.resume_seconds,
        threads=settings.compute.threads or len(available()),
        device=settings.compute.device,
        provenance={
            "job_id": row.id,
            "base": base.id,
            "base_digest": base.digest,
            "renderer_digest": base.renderer_digest,
            "training_digest": row.training_digest,
            "validation_digest": row.validation_digest,
            "parent_digest": row.parent_digest,
        },
    )
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as stream:
        stream.write(msgspec.json.encode(order))
    Path(stream.name).replace(folder / "job.json")


def _fetch_resume(row: Job, *, folder: Path, store: Store) -> str | None:
    """Fetch the checkpoint to go on from; one that is damaged costs its steps, not the job."""
    if row.resume_digest is None:
        return None
    try:
        return str(store.fetch_tree(row.resume_digest, folder))
    except (NotFound, Corrupt) as error:
        log.warning("no checkpoint to go on from; starting again", reason=error.message)
        return None
