"""What a trainer is given: a folder with its files, its order, and nothing else."""

import tempfile
from pathlib import Path

import msgspec

from core.bases import read_manifest
from core.settings import WorkerSettings
from core.store import Store
from models.spec import TrainOrder
from models.tables.job import Job


def write_order(
    row: Job, *, folder: Path, base_folder: Path, store: Store, settings: WorkerSettings
) -> None:
    """Fetch the job's files from the store into `folder` and write `job.json` beside them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    base = read_manifest(base_folder)

    def fetch_file(digest: str | None, name: str) -> str | None:
        return str(store.fetch_file(digest, folder / name)) if digest else None

    def fetch_tree(digest: str | None, name: str) -> str | None:
        return str(store.fetch_tree(digest, folder / name)) if digest else None

    order = TrainOrder(
        job_id=row.id,
        spec={"base": row.base, "method": row.method, "loop": row.loop, "seed": row.seed},
        base_folder=str(base_folder),
        training_file=str(store.fetch_file(row.training_digest, folder / "training.jsonl")),
        validation_file=fetch_file(row.validation_digest, "validation.jsonl"),
        parent_folder=fetch_tree(row.parent_digest, "parent"),
        resume_folder=fetch_tree(row.resume_digest, "resume"),
        work_folder=str(folder / "out"),
        resume_seconds=settings.resume_seconds,
        threads=settings.compute.threads,
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
