"""A job that is long enough to be disturbed, and the look at what came of it."""

import hashlib
from typing import Any

import pytest

from models.tables import adapter
from models.tables.job import Job
from tests.processes import children, wait_for
from tests.worker.site import Site

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"It is {n}."},
        ]
    }
    for n in range(40)
]
LOOP = {"n_epochs": 5, "batch_size": 2, "learning_rate": 0.01}
METHOD = {"type": "lora", "rank": 4, "dropout": 0.1}
STEPS = 100
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what happens between worker, trainer and files: no other database would see more of it."""


def post(site: Site) -> Job:
    """Queue the job."""
    return site.add_job(ROWS, loop=LOOP, method=METHOD)


def trainer_of(worker_pid: int) -> int:
    """Return the process in which a worker trains."""
    return wait_for(lambda: children(worker_pid))[0]


def weights(site: Site, row: Job) -> str:
    """Return the hash of the one published adapter's tensors."""
    with site.database.unit_of_work() as session:
        published = adapter.list_all(session, tenant=row.tenant)
    assert [item.job_id for item in published].count(row.id) == 1
    digest = next(item.digest for item in published if item.job_id == row.id)
    tree = site.store.fetch_tree(digest, site.folder / "check" / digest)
    return hashlib.sha256((tree / "adapter_model.safetensors").read_bytes()).hexdigest()


def check_like_unbroken(site: Site, row: Job, *, unbroken: str) -> None:
    """Every step was told once, and the weights are those of a run that nothing disturbed."""
    assert site.steps_told(row) == list(range(1, STEPS + 1))
    assert weights(site, row) == unbroken
