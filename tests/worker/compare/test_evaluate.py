"""Comparisons through real workers, trainers and a real engine over a tiny base."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from core.database import Database
from core.errors import StorageFull
from core.settings import Settings, WorkerSettings
from core.store import Store
from models.comparison import ComparisonResult
from models.tables import adapter, comparison, comparison_claims, file
from models.tables.base import Page
from models.tables.comparison import Comparison
from models.tables.comparison_table import assemble
from tests.factories import make_comparison, make_job
from tests.processes import wait_for
from tests.worker.site import Site
from worker.compare.evaluate import Evaluation

SECONDS = 120.0
LOOP = {"max_tokens": 600, "batch_size": 4, "learning_rate": 0.01}


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


LABELLED = [chat(f"Is {n} odd?", "yes" if n % 2 else "no") for n in range(20)]
SPOKEN = [chat(f"Say {n}.", f"It is {n}, as you asked.") for n in range(8)]
PARROTED = [chat(f"Say {n}.", "It is as you asked.") for n in range(8)]


@pytest.fixture
def engine(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """The engine of the site, over its store."""
    with (site.folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.engine"],
            env={
                **os.environ,
                "GRAFTWORK_BASE": "tiny",
                "GRAFTWORK_DATA_DIR": str(site.folder),
                "OMP_NUM_THREADS": "1",
            },
            stdout=log,
            stderr=log,
        )
    yield process
    process.kill()
    process.wait()


def post(site: Site, rows: list[dict[str, Any]], *methods: dict[str, Any]) -> Comparison:
    """Add a comparison as the api adds one."""
    path = site.folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = site.store.put_file(path)
    files = {"training_digest": digest, "validation_digest": digest, "validation_file": "file-v"}
    with site.database.unit_of_work() as session:
        row = make_comparison(session, validation_digest=digest)
        jobs = [
            make_job(session, method=method, loop=LOOP, comparison_id=row.id, **files)
            for method in methods
        ]
        row.entries = [
            {"label": f"{job.method['type']} {index}", "method": job.method, "job": job.id}
            for index, job in enumerate(jobs)
        ]
    return row


def read(site: Site, row: Comparison) -> tuple[Comparison, ComparisonResult]:
    with site.database.unit_of_work() as session:
        now = comparison.get(session, row.id, tenant="acme")
        return now, assemble(session, now)


def wait_for_end(site: Site, row: Comparison) -> tuple[Comparison, ComparisonResult]:
    return wait_for(
        lambda: (now := read(site, row))[0].state in ("succeeded", "failed") and now,
        seconds=SECONDS,
    )


def test_labels_are_scored_and_everything_is_in_the_table(
    site: Site, engine: subprocess.Popen[bytes]
) -> None:
    site.start_worker()
    row = post(site, LABELLED, {"type": "lora", "rank": 2}, {"type": "ia3"}, {"type": "head"})
    ended, table = wait_for_end(site, row)
    assert (ended.state, ended.error) == ("succeeded", None)
    assert (table.metric, ended.measured_by) == ("accuracy", "accuracy")
    assert [one.label for one in table.rows] == ["base", "lora 0", "ia3 1", "head 2"]
    assert {one.label: one.error for one in table.rows if one.status != "done"} == {}
    for one in table.rows:
        assert one.quality is not None
        assert 0 <= one.quality.low <= one.quality.value <= one.quality.high <= 1
        assert one.serving_overhead is not None
        assert one.serving_overhead > 0
        assert one.answers is not None
    for one in table.rows[1:]:
        assert one.parameters
        assert one.artifact_bytes
        assert one.trained_tokens
        assert one.seconds
        assert one.tokens_per_second
        assert one.peak_bytes
        assert one.loss is not None
        assert one.model is not None
    assert set(ended.plots or {}) == {
        f"{name}.{form}" for name in ("both", "parameters", "compute") for form in ("svg", "png")
    }
    assert all(site.store.exists(digest) for digest in (ended.plots or {}).values())
    answers = read_answers(site, table.rows[1].answers)
    assert len(answers) == len(LABELLED)
    assert {line["answer"] for line in answers} <= {"yes", "no"}
    assert [line["references"] for line in answers[:2]] == [["no"], ["yes"]]


def test_a_method_that_cannot_do_it_does_not_spoil_the_others(
    site: Site, engine: subprocess.Popen[bytes]
) -> None:
    site.start_worker()
    row = post(
        site,
        PARROTED,
        {"type": "head", "task": "classification"},
        {"type": "lora", "rank": 2, "alpha": 1e-9},
    )
    with site.database.unit_of_work() as session:  # a job that somebody ends by hand
        other = make_job(session, state="cancelled", comparison_id=row.id)
        now = comparison.get(session, row.id, tenant="acme")
        now.entries = [*now.entries, {"label": "gone", "method": other.method, "job": other.id}]
    ended, table = wait_for_end(site, row)
    assert (ended.state, table.metric) == ("succeeded", "bleu")
    base, head, lora, gone = table.rows
    assert [one.status for one in table.rows] == ["done", "not_applicable", "done", "cancelled"]
    assert head.error is not None
    assert "label" in head.error
    assert base.quality == lora.quality  # as good as untrained
    assert gone.quality is None
    assert table.pareto == ["base"]


# half a minute of waiting each; what the databases do differently is in the tests of claims
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_costs_no_answers(
    site: Site, engine: subprocess.Popen[bytes], how: signal.Signals
) -> None:
    first = site.start_worker()
    row = post(site, SPOKEN, *({"type": "lora", "rank": rank} for rank in (1, 2, 3)))
    wait_for(lambda: read(site, row)[0].measured, seconds=SECONDS)
    first.send_signal(how)
    first.wait(60)
    kept, _ = read(site, row)
    assert (kept.owner is None) == (how == signal.SIGTERM)
    assert kept.state == "evaluating"
    site.start_worker()
    ended, table = wait_for_end(site, row)
    assert ended.state == "succeeded"
    assert ended.fence > kept.fence
    assert {label: ended.measured[label] for label in kept.measured} == kept.measured
    with site.database.unit_of_work() as session:
        made, _ = file.list_page(
            session, tenant="acme", page=Page(100), purpose="fine-tune-results"
        )
    answers = [one.id for one in made if one.filename.startswith("answers")]
    assert sorted(answers) == sorted(one.answers for one in table.rows)


def test_it_ends_with_a_reason_when_no_method_gave_anything(site: Site) -> None:
    site.start_worker()
    row = post(site, SPOKEN, {"type": "lora", "rank": 2})
    path = site.folder / "bad.jsonl"
    path.write_bytes(b"no json\n")
    digest = site.store.put_file(path)
    with site.database.unit_of_work() as session:
        comparison.get(session, row.id, tenant="acme").validation_digest = digest
    ended, _ = wait_for_end(site, row)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["code"] == "invalid_training_file"
    assert "Line 1 of the validation file" in ended.error["message"]


def test_a_full_disk_is_tried_again_but_not_for_ever(
    database: Database, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageFull("full")

    monkeypatch.setattr(Store, "fetch_file", refuse)
    settings = Settings(data_dir=tmp_path / "data", worker=WorkerSettings(max_attempts=1))
    with database.unit_of_work() as session:
        row = make_comparison(session)
    for state in ("evaluating", "failed"):
        with database.unit_of_work() as session:
            taken = comparison_claims.take(session, owner="w", seconds=-1)
            assert taken is not None
        Evaluation(taken, settings=settings, database=database, store=store, stopping=Event()).run()
        with database.reading() as session:
            ended = comparison.get(session, row.id, tenant="acme")
        assert ended.state == state
    assert ended.error is not None
    assert ended.error["code"] == "too_many_attempts"


def test_a_comparison_waits_for_its_jobs_and_belongs_to_one_worker(site: Site) -> None:
    row = post(site, SPOKEN, {"type": "lora"})
    with site.database.unit_of_work() as session:
        assert not comparison_claims.due(session)
        assert comparison_claims.take(session, owner="a", seconds=60) is None
        [job] = comparison.list_jobs(session, row.id)
        job.state = "failed"
    with site.database.unit_of_work() as session:
        assert comparison_claims.due(session)
        taken = comparison_claims.take(session, owner="a", seconds=60)
        assert taken is not None
        assert taken.state == "evaluating"
    with site.database.unit_of_work() as session:
        assert comparison_claims.take(session, owner="b", seconds=60) is None
        assert comparison.is_pinned(session, row.validation_digest)
        claim = (taken.id, taken.fence)
        held = comparison_claims.renew(session, [claim], seconds=60)
        assert held == {claim: ("evaluating", True)}
        comparison_claims.hand_back(session, taken)
        assert not comparison_claims.renew(session, [claim], seconds=60)
    with site.database.unit_of_work() as session:
        again = comparison_claims.take(session, owner="b", seconds=60)
        assert again is not None
        assert (again.fence, again.attempts) == (taken.fence + 1, 1)


def test_a_deleted_adapter_is_a_row_that_says_so(
    site: Site, engine: subprocess.Popen[bytes]
) -> None:
    worker = site.start_worker()
    row = post(site, SPOKEN, {"type": "lora", "rank": 1}, {"type": "lora", "rank": 2})

    def trained() -> bool:
        with site.database.unit_of_work() as session:
            return all(one.state == "succeeded" for one in comparison.list_jobs(session, row.id))

    wait_for(trained, seconds=SECONDS)
    worker.kill()
    with site.database.unit_of_work() as session:
        first, _ = comparison.list_jobs(session, row.id)
        adapter.delete(session, first.fine_tuned_model or "", tenant="acme")
        now = comparison.get(session, row.id, tenant="acme")
        now.measured = {}
    site.start_worker()
    _, table = wait_for_end(site, row)
    assert [one.status for one in table.rows] == ["done", "failed", "done"]
    assert table.rows[1].error == "Its adapter was deleted before it was asked."


def read_answers(site: Site, file_id: str | None) -> list[dict[str, Any]]:
    with site.database.unit_of_work() as session:
        found = file.get(session, file_id or "", tenant="acme")
    content = b"".join(site.store.stream(found.digest))
    return [json.loads(line) for line in content.splitlines()]
