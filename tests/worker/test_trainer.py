"""The trainer as a child process: what of our environment it has, and what it is told."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.memory import LARGE_PAGES
from worker import trainer
from worker.trainer import Trainer


def test_it_is_told_how_to_compute_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_NATIVE", "off")
    monkeypatch.setenv("GRAFTWORK_DATABASE_URL", "postgresql://user:password@host/name")
    given = trainer._environment()
    assert given["GRAFTWORK_NATIVE"] == "off"
    assert "GRAFTWORK_DATABASE_URL" not in given


def test_it_has_large_pages_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (name,) = LARGE_PAGES
    monkeypatch.delenv(name, raising=False)
    assert LARGE_PAGES.items() <= trainer._environment().items()
    monkeypatch.setenv(name, "glibc.malloc.hugetlb=0")
    assert trainer._environment()[name] == "glibc.malloc.hugetlb=0"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Trainer]:
    made = Trainer(tmp_path / "work", cores_folder=tmp_path / "cores")
    with made._log_file:
        yield made
        made.end()


def test_an_order_is_asked_each_thing_once_and_nothing_is_kept_of_it(
    started: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(started.process, "stdin", heard)
        started.ask("drop", "a-1")  # which it was not given yet
        started.train(Path("/work/a-1"))
        for wish in ("pause", "stop", "pause", "stop"):
            started.ask(wish, "a-1")
        for _ in range(2):
            started.forget("a-1")
            started.ask("stop", "a-1")
    assert heard.getvalue().split(b"\n") == [
        b"train /work/a-1",
        b"pause a-1",
        b"stop a-1",
        b"drop a-1",
        b"",
    ]
    assert not started._asked
