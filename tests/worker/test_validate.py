"""What can be known of a job's files before its turn, a method's own wishes included."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.database import Database
from core.errors import Unavailable
from core.settings import Settings, WorkerSettings
from core.store import Store
from models.tables import claims, job
from models.tables.job import Job
from tests.factories import make_job
from worker.validate import validate_files

CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"{n}"},
            {"role": "assistant", "content": "odd" if n % 2 else "even"},
        ]
    }
    for n in range(6)
]
STRANGE = [{"messages": [CHAT[0]["messages"][0], {"role": "assistant", "content": "neither"}]}]
TEXT = [{"text": "no answer"}] * 4
UNIQUE = [{"prompt": f"{n}", "completion": f"answer {n}"} for n in range(6)]


@pytest.fixture
def validate(database: Database, store: Store, tmp_path: Path) -> Any:
    def put(rows: list[Any], name: str) -> str:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return store.put_file(path)

    def validate(method: dict[str, Any], rows: list[Any], held_out: list[Any] | None = None) -> Job:
        with database.unit_of_work() as session:
            made = make_job(
                session,
                method=method,
                training_digest=put(rows, "training.jsonl"),
                validation_file="file-1" if held_out else None,
                validation_digest=put(held_out, "validation.jsonl") if held_out else None,
            )
            number = made.id
        with database.unit_of_work() as session:
            taken = claims.take(session, owner="w", seconds=30, state="validating_files")
            assert taken is not None
        settings = Settings(data_dir=tmp_path / "data")
        validate_files(taken, settings=settings, database=database, store=store)
        assert list(settings.work_folder.iterdir()) == []
        with database.reading() as session:
            return job.get(session, number, tenant="acme")

    return validate


@pytest.mark.parametrize(
    ("method", "rows", "held_out", "code"),
    [
        ({"type": "feature_based"}, TEXT, None, "no_answers"),
        ({"type": "in_context"}, TEXT, None, "no_answers"),
        ({"type": "head"}, UNIQUE, None, "no_label_set"),
        ({"type": "head", "labels": ["odd", "prime"]}, CHAT, None, "unknown_label"),
        ({"type": "head"}, CHAT, STRANGE, "unknown_label"),
    ],
)
def test_answers_that_a_method_cannot_learn_end_the_job_before_its_turn(
    validate: Any, method: dict[str, Any], rows: list[Any], held_out: Any, code: str
) -> None:
    ended = validate(method, rows, held_out)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["code"] == code


@pytest.mark.parametrize("method", [{"type": "head"}, {"type": "in_context"}, {"type": "lora"}])
def test_good_answers_wait_for_their_turn(validate: Any, method: dict[str, Any]) -> None:
    ready = validate(method, CHAT, CHAT[:2])
    assert ready.state == "queued"
    assert ready.report["rows"] == 6
    assert ready.report["validation_rows"] == 2


def test_plain_text_is_enough_for_what_generates(validate: Any) -> None:
    assert validate({"type": "lora"}, TEXT).state == "queued"


def take(database: Database) -> Job:
    with database.unit_of_work() as session:
        taken = claims.take(session, owner="w", seconds=-1, state="validating_files")
        assert taken is not None
        return taken


@pytest.mark.parametrize(("killed", "state"), [(2, "failed"), (1, "queued")])
def test_a_check_that_kills_its_worker_is_not_tried_for_ever(
    database: Database, store: Store, tmp_path: Path, killed: int, state: str
) -> None:
    (tmp_path / "training.jsonl").write_text("\n".join(map(json.dumps, CHAT)))
    digest = store.put_file(tmp_path / "training.jsonl")
    with database.unit_of_work() as session:
        made = make_job(session, training_digest=digest).id
    take(database)
    with database.unit_of_work() as session:  # that is no failed attempt
        job.pause(session, made, tenant="acme")
        job.resume(session, made, tenant="acme")
    for _ in range(killed):
        take(database)
    settings = Settings(data_dir=tmp_path / "data", worker=WorkerSettings(max_attempts=2))
    validate_files(take(database), settings=settings, database=database, store=store)
    with database.reading() as session:
        found = job.get(session, made, tenant="acme")
    assert found.state == state
    if found.error is None:
        assert found.attempts == 0
    else:
        assert found.error["code"] == "too_many_attempts"
        assert "gave up after 2 attempts" in found.error["message"]


def test_a_store_that_is_away_costs_no_attempt(
    database: Database, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Store, digest: str, path: Path) -> Path:
        raise Unavailable("away")

    monkeypatch.setattr(Store, "fetch_file", refuse)
    with database.unit_of_work() as session:
        made = make_job(session).id
    settings = Settings(data_dir=tmp_path / "data")
    validate_files(take(database), settings=settings, database=database, store=store)
    with database.reading() as session:
        found = job.get(session, made, tenant="acme")
    assert (found.state, found.attempts) == ("validating_files", 0)


def test_a_fault_of_the_disk_is_tried_again_but_not_for_ever(
    database: Database, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "training.jsonl").write_text("\n".join(map(json.dumps, CHAT)))
    digest = store.put_file(tmp_path / "training.jsonl")
    with database.unit_of_work() as session:
        made = make_job(session, training_digest=digest).id
    settings = Settings(data_dir=tmp_path / "data", worker=WorkerSettings(max_attempts=2))
    settings.work_folder.parent.mkdir(parents=True)
    settings.work_folder.write_text("in the way")
    for state in ("validating_files", "failed"):
        validate_files(take(database), settings=settings, database=database, store=store)
        with database.reading() as session:
            found = job.get(session, made, tenant="acme")
        assert found.state == state
    assert found.error is not None
    assert found.error["code"] == "storage_full"


def test_a_row_without_an_answer_is_told_by_its_file_and_line(validate: Any) -> None:
    ended = validate({"type": "head"}, CHAT, [*CHAT[:1], {"messages": CHAT[0]["messages"][1:]}])
    assert ended.error is not None
    assert (ended.error["code"], ended.error["param"]) == ("no_answers", "validation_file")
    assert ended.error["message"].startswith("Line 2: ")
