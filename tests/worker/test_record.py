"""What a trainer says, as it is written down: told once, and never more than is true."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy.orm import Session

from core.database import Database
from core.errors import DatabaseFull, StaleFence, StorageFull, Unavailable
from core.settings import Settings
from core.store import Store
from models.spec import Broke, CheckpointSaved, Metrics, Started, Stopped, Succeeded, Validated
from models.tables import checkpoint, claims, event, job
from models.tables.base import Page
from models.tables.job import Job
from tests.factories import make_queued_job
from worker.claimed_job import ClaimedJob
from worker.lease import Leases
from worker.record import Recorder
from worker.train.gang import explain


def take(database: Database) -> Job:
    with database.unit_of_work() as session:
        row = claims.take(session, owner="w", seconds=30, state="queued")
        assert row is not None
        return row


@pytest.fixture
def row(database: Database) -> Job:
    with database.unit_of_work() as session:
        make_queued_job(session)
    return take(database)


def told(database: Database, row: Job) -> list[dict[str, Any]]:
    with database.reading() as session:
        events, _ = event.list_page(session, row.id, page=Page(limit=100, ascending=True))
        return [one.data for one in events if one.type == "metrics" and one.data]


def said(database: Database, row: Job) -> str:
    with database.reading() as session:
        (last,), _ = event.list_page(session, row.id, page=Page(limit=1))
        return last.message


def metrics(step: int, **values: float) -> Metrics:
    return Metrics(
        step=step, values=values, tokens_per_second=1.0, eta_seconds=1.0, trained_tokens=step
    )


def saved(
    step: int, kind: Any, *, adapter_folder: str, resume_folder: str, over: bool = False
) -> CheckpointSaved:
    return CheckpointSaved(
        step=step,
        kind=kind,
        adapter_folder=adapter_folder,
        resume_folder=resume_folder,
        metrics={},
        over=over,
    )


def succeeded(adapter_folder: str, *, results: Path) -> Succeeded:
    results.write_text("step")
    return Succeeded(
        step=1,
        adapter_folder=adapter_folder,
        results_file=str(results),
        metrics={},
        trained_tokens=1,
        method=None,
        usage={},
    )


def test_what_is_measured_behind_the_last_step_is_told_by_the_next_claim(
    database: Database, store: Store, row: Job
) -> None:
    first = Recorder(row, database=database, store=store)
    for step in (1, 2):
        first.record(metrics(step, train_loss=1.0))
    first.record(Stopped(step=2))
    second = Recorder(take(database), database=database, store=store)
    second.record(metrics(2, train_loss=1.0))
    second.record(metrics(2, valid_loss=0.5))
    second.record(metrics(3, train_loss=1.0))
    expected = [{"step": 1, "train_loss": 1.0}, {"step": 2, "train_loss": 1.0}]
    expected += [{"step": 2, "valid_loss": 0.5}, {"step": 3, "train_loss": 1.0}]
    assert told(database, row) == expected


def test_what_may_have_been_told_already_is_not_told_again(
    database: Database, store: Store, row: Job
) -> None:
    recorder = Recorder(row, database=database, store=store)
    for _ in range(2):  # the answer to the first COMMIT was lost
        recorder.record(metrics(1, train_loss=1.0))
        recorder.may_have_told = True
    recorder.record(metrics(2, train_loss=1.0))
    assert [data["step"] for data in told(database, row)] == [1, 2]


def test_each_try_tells_once_that_training_started(
    database: Database, store: Store, row: Job
) -> None:
    message = Started(total_steps=2, trained_parameters=1, resumed_step=0)
    for _ in range(2):
        recorder = Recorder(row, database=database, store=store)
        for _ in range(2):  # the answer to the first COMMIT was lost
            recorder.record(message)
            recorder.may_have_told = True
        with database.unit_of_work() as session:
            claims.retry(session, row, max_attempts=5, reason="No luck")
        row = take(database)
    with database.reading() as session:
        events, _ = event.list_page(session, row.id, page=Page(limit=100, ascending=True))
    again = "No luck; the job starts again."
    assert [one.message for one in events][1:] == ["Training started.", again] * 2


def test_what_became_of_the_data_is_told_once(database: Database, store: Store, row: Job) -> None:
    message = Validated(report={"kept": 3, "labelled_share": 0.1, "validation": {"kept": 1}})
    first = Recorder(row, database=database, store=store)
    for _ in range(2):  # the answer to the first COMMIT was lost
        first.record(message)
        first.may_have_told = True
    first.record(Stopped(step=1))
    again = take(database)
    assert again.report == {"rows": 3, "format": "chat", **message.report}
    Recorder(again, database=database, store=store).record(message)
    with database.reading() as session:
        events, _ = event.list_page(session, row.id, page=Page(limit=100))
    assert [one.data for one in events if one.message == "Data tokenised."] == [message.report]


def test_nothing_is_called_saved_that_found_no_room(
    database: Database, store: Store, row: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "resume-1", tmp_path / "resume-2"]
    for folder in folders:
        folder.mkdir()
        (folder / "state.json").write_text(folder.name)
    recorder = Recorder(row, database=database, store=store)

    def save(folder: Path, step: int) -> None:
        recorder.record(saved(step, "resume", adapter_folder="", resume_folder=str(folder)))

    def refuse(self: Store, folder: Path) -> str:
        raise StorageFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_tree", refuse)
        save(folders[0], 1)
    assert not folders[0].exists()
    recorder.record(Stopped(step=1))
    assert said(database, row) == "There was no room to save the job; it is queued, as last saved."
    again = take(database)
    assert again.attempts == 1
    recorder = Recorder(again, database=database, store=store)
    save(folders[1], 2)
    recorder.record(Stopped(step=2))
    assert said(database, row) == "The job was saved at step 2; it is queued."
    with database.reading() as session:
        assert job.get(session, row.id, tenant="acme").resume_digest is not None


@pytest.mark.parametrize(("resumable", "over"), [(True, False), (False, False), (False, True)])
def test_the_folders_of_an_epoch_go_once_they_are_stored_but_for_the_last(
    database: Database, store: Store, row: Job, tmp_path: Path, resumable: bool, over: bool
) -> None:
    folders = [tmp_path / "adapter", tmp_path / "resume"]
    for folder in folders:
        folder.mkdir()
        (folder / "state.json").write_text(folder.name)
    resume = str(folders[1]) if resumable else ""
    message = saved(1, "epoch", adapter_folder=str(folders[0]), resume_folder=resume, over=over)
    Recorder(row, database=database, store=store).record(message)
    assert [folder.exists() for folder in folders] == [over, not resumable]
    with database.reading() as session:
        shown = checkpoint.find_step(session, row.id, step=1)
    assert shown is not None
    assert store.read_tree(shown.digest).keys() == {"state.json"}


def test_what_a_job_that_succeeds_would_have_gone_on_from_is_left_to_the_collector(
    database: Database, store: Store, row: Job, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    tree = store.put_tree(folder)
    with database.unit_of_work() as session:
        claims.update_owned(session, row, resume_digest=tree)
    message = succeeded(str(folder), results=tmp_path / "results.csv")
    Recorder(row, database=database, store=store).record(message)
    with database.reading() as session:
        ended = job.get(session, row.id, tenant="acme")
        assert (ended.state, ended.resume_digest) == ("succeeded", tree)


def stored(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}


def make_folder(path: Path, content: str) -> str:
    path.mkdir()
    (path / f"{path.name}.json").write_text(content)
    return str(path)


@pytest.fixture
def cancelled_meanwhile(
    database: Database, row: Job, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Have somebody cancel the job while the next folder is stored."""
    put = Store.put_tree

    def put_and_cancel(store: Store, folder: Path) -> str:
        digest = put(store, folder)
        with database.unit_of_work() as session:
            if job.get(session, row.id, tenant=row.tenant).state == "running":
                job.cancel(session, row.id, tenant=row.tenant)
        return digest

    return lambda: monkeypatch.setattr(Store, "put_tree", put_and_cancel)


@pytest.mark.parametrize("kind", ["resume", "epoch", "succeeded"])
def test_bytes_whose_row_is_refused_do_not_stay(
    database: Database,
    store: Store,
    row: Job,
    tmp_path: Path,
    cancelled_meanwhile: Callable[[], None],
    kind: str,
) -> None:
    recorder = Recorder(row, database=database, store=store)
    adapter = make_folder(tmp_path / "adapter", "{}")
    if kind == "succeeded":
        message: Any = succeeded(adapter, results=tmp_path / "results.csv")
    else:
        resume = make_folder(tmp_path / "resume", "{}")
        message = saved(1, kind, adapter_folder=adapter, resume_folder=resume)
    cancelled_meanwhile()
    with pytest.raises(StaleFence):
        recorder.record(message)
    assert not stored(tmp_path)


def test_bytes_do_not_stay_where_the_store_takes_no_more(
    database: Database, store: Store, row: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, resume = (make_folder(tmp_path / name, "{}") for name in ("adapter", "resume"))
    put = Store.put_tree

    def put_only_resume(store: Store, folder: Path) -> str:
        if folder.name == "adapter":
            raise OSError(errno.EIO, "Input/output error")
        return put(store, folder)

    monkeypatch.setattr(Store, "put_tree", put_only_resume)
    with pytest.raises(OSError, match="Input/output"):
        Recorder(row, database=database, store=store).record(
            saved(1, "epoch", adapter_folder=adapter, resume_folder=resume)
        )
    assert not stored(tmp_path)


def test_bytes_do_not_stay_of_what_is_given_up_while_the_database_is_away(
    database: Database, store: Store, row: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(row, database=database, store=store)
    adapter, resume = (make_folder(tmp_path / name, "{}") for name in ("adapter", "resume"))
    message = saved(1, "epoch", adapter_folder=adapter, resume_folder=resume)

    def away(*_: Any, **__: Any) -> None:
        raise Unavailable("away", code="database_unavailable")

    with monkeypatch.context() as patch:
        patch.setattr("worker.record.claims.update_owned", away)
        with pytest.raises(Unavailable):
            recorder.record(message)
        assert stored(tmp_path)  # it may be written down yet
    recorder.take_back()
    assert not stored(tmp_path)
    recorder.record(message)
    recorder.take_back()
    assert stored(tmp_path)  # rows have these


def test_bytes_that_a_row_has_stay_when_another_is_refused(
    database: Database,
    store: Store,
    row: Job,
    tmp_path: Path,
    cancelled_meanwhile: Callable[[], None],
) -> None:
    recorder = Recorder(row, database=database, store=store)
    adapter, resume = (make_folder(tmp_path / name, "{}") for name in ("adapter", "resume"))
    recorder.record(saved(1, "epoch", adapter_folder=adapter, resume_folder=resume))
    kept = stored(tmp_path)
    assert {"adapter.json", "resume.json"} < kept
    for folder in (adapter, resume):  # both are as they were, so that equal trees are stored
        make_folder(Path(folder), "{}")
    cancelled_meanwhile()
    with pytest.raises(StaleFence):
        recorder.record(saved(2, "epoch", adapter_folder=adapter, resume_folder=resume))
    assert stored(tmp_path) == kept


def test_a_full_disk_is_not_met_again_at_once(database: Database, row: Job) -> None:
    with database.unit_of_work() as session:
        claims.retry(session, row, max_attempts=5, reason="The disk is full", wait_seconds=0.5)
    with database.unit_of_work() as session:
        assert not claims.waiting(session, state="queued", older_than=-1)
        assert claims.take(session, owner="w", seconds=30, state="queued") is None
    time.sleep(0.6)
    assert take(database).attempts == 2


@pytest.mark.parametrize("stores", [False, True])
def test_a_database_without_room_is_waited_for_by_what_takes_up_none(
    database: Database,
    store: Store,
    row: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stores: bool,
) -> None:
    update, refused = claims.update_owned, []

    def refuse_twice(session: Session, row: Job, **values: Any) -> None:
        if len(refused) < 2 and "state" not in values:
            refused.append(values)
            raise DatabaseFull("full")
        update(session, row, **values)

    monkeypatch.setattr(claims, "update_owned", refuse_twice)
    monkeypatch.setattr("worker.claimed_job.TICK_SECONDS", 0.01)
    resume = make_folder(tmp_path / "resume", "{}")
    message = saved(1, "resume", adapter_folder="", resume_folder=resume)
    with Leases(database=database, seconds=60.0) as leases:
        settings = Settings(data_dir=tmp_path)
        claimed = ClaimedJob(row, settings=settings, database=database, store=store, leases=leases)
        claimed.hear(message if stores else metrics(1, train_loss=1.0))
        claimed.close()
    assert claimed.is_over == stores
    assert len(refused) == (1 if stores else 2)
    assert not stored(tmp_path)
    if stores:
        assert said(database, row).startswith("The worker could not write to its disk; ")
    else:
        assert [data["step"] for data in told(database, row)] == [1]


def test_a_trainers_full_disk_is_called_by_its_name() -> None:
    told = explain(OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(told, Broke)
    assert told.code == "storage_full"


def test_a_job_is_given_up_where_not_even_that_can_be_written_down(
    database: Database, store: Store, row: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Database) -> NoReturn:
        raise StorageFull("full")

    with Leases(database=database, seconds=60.0) as leases:
        settings = Settings(data_dir=tmp_path)
        claimed = ClaimedJob(row, settings=settings, database=database, store=store, leases=leases)
        with monkeypatch.context() as patch:
            patch.setattr(Database, "unit_of_work", refuse)
            claimed.hear(Broke(reason="a fault"))
        assert claimed.is_over
        claimed.close()
