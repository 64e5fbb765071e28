"""Deleted means deleted, but not while a job still needs the bytes."""

from pathlib import Path

import pytest

from core.database import Database
from core.errors import NotFound, StorageFull
from core.ids import new_id
from core.store import MANIFEST, Store
from models.tables import adapter, checkpoint, claims, file, job
from models.tables.adapter import Adapter
from models.tables.checkpoint import Checkpoint
from models.tables.file import File
from tests.factories import make_comparison, make_job, make_queued_job
from worker.collect import collect


def add_file(
    database: Database,
    store: Store,
    path: Path,
    *,
    expires_at: float | None = None,
    content: str = "rows",
) -> File:
    path.write_text(content)
    digest = store.put_file(path)
    row = File(
        id=new_id("file"),
        tenant="acme",
        filename="rows.jsonl",
        purpose="fine-tune",
        bytes=4,
        digest=digest,
        expires_at=expires_at,
    )
    with database.unit_of_work() as session:
        session.add(row)
    return row


def add_adapter(
    database: Database, store: Store, folder: Path, name: str, *, content: str = "weights"
) -> Adapter:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_text(content)
    row = Adapter(
        name=name,
        tenant="acme",
        base="tiny",
        method={"type": "lora"},
        digest=store.put_tree(folder),
        bytes=7,
        parameters=1,
    )
    with database.unit_of_work() as session:
        session.add(row)
    return row


def test_a_deleted_file_goes_when_its_last_twin_and_its_last_job_are_gone(
    database: Database, store: Store, tmp_path: Path
) -> None:
    first = add_file(database, store, tmp_path / "rows")
    twin = add_file(database, store, tmp_path / "rows")
    with database.unit_of_work() as session:
        waiting = make_job(session, training_digest=first.digest)
        file.delete(session, first.id, tenant="acme")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.exists(first.digest)
    with database.unit_of_work() as session:
        file.delete(session, twin.id, tenant="acme")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.exists(first.digest)
    with database.unit_of_work() as session:
        job.cancel(session, waiting.id, tenant="acme")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert not store.exists(first.digest)


def test_what_is_needed_or_stuck_is_in_nobodys_way(
    database: Database, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.collect.BATCH", 2)
    rows = [add_file(database, store, tmp_path / "rows", content=f"{n}") for n in range(4)]
    needed, measured, stuck, free = (row.digest for row in rows)
    trees = [add_adapter(database, store, tmp_path / f"{n}", f"{n}", content=f"{n}") for n in "ab"]
    with database.unit_of_work() as session:
        make_job(session, state="paused", validation_digest=needed, parent_digest=trees[0].digest)
        make_comparison(session, validation_digest=measured)
        for row in rows:
            file.delete(session, row.id, tenant="acme")
        for tree in trees:
            adapter.delete(session, tree.name, tenant="acme")
    stuck_path = tmp_path / "store" / "blobs" / stuck[:2] / stuck
    stuck_path.unlink()
    stuck_path.mkdir()
    stale = tmp_path / "work" / "ftjob-1-1"
    stale.mkdir(parents=True)
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.exists(needed)
    assert store.exists(measured)
    assert not store.exists(free)
    assert store.read_tree(trees[0].digest)
    with pytest.raises(NotFound):
        store.read_tree(trees[1].digest)
    assert not stale.exists()
    stuck_path.rmdir()
    stuck_path.write_text("2")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert not store.exists(stuck)


def test_a_file_past_its_time_is_gone(database: Database, store: Store, tmp_path: Path) -> None:
    row = add_file(database, store, tmp_path / "rows", expires_at=1.0)
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert not store.exists(row.digest)
    with pytest.raises(NotFound), database.unit_of_work() as session:
        file.get(session, row.id, tenant="acme")


def test_a_deleted_adapter_stays_while_a_job_continues_it(
    database: Database, store: Store, tmp_path: Path
) -> None:
    row = add_adapter(database, store, tmp_path / "adapter", "ft:tiny:acme::1")
    with database.unit_of_work() as session:
        child = make_job(session, parent_digest=row.digest)
        adapter.delete(session, row.name, tenant="acme")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.read_tree(row.digest)
    with database.unit_of_work() as session:
        job.cancel(session, child.id, tenant="acme")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    with pytest.raises(NotFound):
        store.read_tree(row.digest)


def test_equal_adapters_keep_their_tree_until_the_last_is_deleted(
    database: Database, store: Store, tmp_path: Path
) -> None:
    first = add_adapter(database, store, tmp_path / "adapter", "ft:tiny:acme::1")
    second = add_adapter(database, store, tmp_path / "adapter", "ft:tiny:acme::2")
    with database.unit_of_work() as session:
        adapter.delete(session, first.name, tenant="acme")
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.read_tree(second.digest)


def test_a_deleted_checkpoint_goes_unless_the_adapter_is_the_same(
    database: Database, store: Store, tmp_path: Path
) -> None:
    final = add_adapter(database, store, tmp_path / "adapter", "ft:tiny:acme::1")
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "adapter_model.safetensors").write_bytes(b"early")
    early = store.put_tree(tmp_path / "early")
    with database.unit_of_work() as session:
        row = make_job(session)
        for step, digest in ((1, early), (2, final.digest)):
            saved = Checkpoint(
                id=new_id("ftckpt"),
                job_id=row.id,
                tenant="acme",
                name=f"ft:tiny:acme::1:ckpt-step-{step}",
                step=step,
                digest=digest,
                metrics={},
            )
            session.add(saved)
            session.flush()
            checkpoint.delete(session, saved)
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.read_tree(final.digest)
    with pytest.raises(NotFound):
        store.read_tree(early)


def test_what_ended_jobs_would_have_gone_on_from_is_removed(
    database: Database, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "state.json").write_text("{}")
    tree = store.put_tree(tmp_path / "resume")
    with database.unit_of_work() as session:
        row = make_job(session, resume_digest=tree)
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert store.read_tree(tree)
    with database.unit_of_work() as session:
        job.cancel(session, row.id, tenant="acme")
    manifest = tmp_path / "store" / "trees" / tree / MANIFEST
    kept = manifest.rename(tmp_path / "kept")
    manifest.mkdir()  # nothing can delete this as a file
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert manifest.parent.exists()
    manifest.rmdir()
    kept.rename(manifest)
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert not manifest.parent.exists()
    with database.reading() as session:
        assert job.get(session, row.id, tenant="acme").resume_digest is None


def test_folders_of_vanished_workers_are_removed(
    database: Database, store: Store, tmp_path: Path
) -> None:
    with database.unit_of_work() as session:
        make_queued_job(session)
    with database.unit_of_work() as session:
        row = claims.take(session, owner="w", seconds=30, state="queued")
    assert row is not None
    mine = tmp_path / "work" / f"{row.id}-{row.fence}"
    stale = tmp_path / "work" / f"{row.id}-{row.fence - 1}"
    for folder in (mine, stale):
        folder.mkdir(parents=True)
    collect(database=database, store=store, work_folder=tmp_path / "work")
    assert mine.exists()
    assert not stale.exists()


def test_bytes_that_a_collector_took_meanwhile_are_stored_again(
    store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    path = folder / "rows"
    path.write_bytes(b"rows")
    digest, tree = store.put_file(path), store.put_tree(folder)
    store.delete(digest)
    store.delete_tree(tree)
    store.keep_file(digest, path)
    store.keep_tree(tree, folder)
    assert store.exists(digest)
    assert store.read_tree(tree)


def test_half_a_tree_is_not_left_behind(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "resume"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    put = Store._put

    def put_first(self: Store, path: Path, *, key: str) -> None:
        if not key.endswith("/a"):
            raise StorageFull("full")
        put(self, path, key=key)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_put", put_first)
        with pytest.raises(StorageFull):
            store.put_tree(folder)
    assert list((tmp_path / "store" / "trees").iterdir()) == []
    digest = store.put_tree(folder)
    assert store.read_tree(digest).keys() == {"a", "b"}
    store.delete_tree(digest)
    assert store.put_tree(folder) == digest
