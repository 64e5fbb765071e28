"""The worker's client of the engine, against a real server that fails on demand."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer

import pytest

from core.errors import Unavailable
from models.spec import SamplingSpec
from models.wire import GenerateRequest
from tests.api.fake_engine import FakeEngine
from worker.compare import engine_client as module
from worker.compare.engine_client import EngineClient, EngineRefused


class Stop(Exception):
    """Somebody wants the thread back."""


def ask(engine: EngineClient, text: str) -> str:
    sampling = SamplingSpec(max_tokens=4, temperature=0.0).model_dump()
    return engine.generate(GenerateRequest(sampling=sampling, prompt=text))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    made = FakeEngine(tmp_path / "engine.sock")
    yield made
    made.stop()


def test_the_pieces_become_one_text(fake: FakeEngine, tmp_path: Path) -> None:
    fake.start()
    with EngineClient(f"unix:{tmp_path / 'engine.sock'}", check=lambda: None) as engine:
        assert ask(engine, "hello there") == "[base] hello there"


@pytest.mark.parametrize(
    ("text", "code"), [("refuse", "context_length_exceeded"), ("break", "engine_error")]
)
def test_what_no_second_try_would_mend_is_refused(
    fake: FakeEngine, tmp_path: Path, text: str, code: str
) -> None:
    fake.start()
    with EngineClient(f"unix:{tmp_path / 'engine.sock'}", check=lambda: None) as engine:
        with pytest.raises(EngineRefused) as error:
            ask(engine, text)
        assert error.value.code == code


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # httpcore's socket
def test_an_engine_that_restarts_is_waited_for(fake: FakeEngine, tmp_path: Path) -> None:
    timer = Timer(1.5, fake.start)
    timer.start()
    with EngineClient(f"unix:{tmp_path / 'engine.sock'}", check=lambda: None) as engine:
        assert ask(engine, "late") == "[base] late"
    timer.join()


@pytest.mark.parametrize("text", ["overload", "garbage"])
def test_it_is_not_waited_for_without_end(
    fake: FakeEngine, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY_SECONDS", 0.1)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.1)
    fake.start()
    address = f"unix:{tmp_path / 'engine.sock'}"
    with EngineClient(address, check=lambda: None) as engine, pytest.raises(Unavailable):
        ask(engine, text)


def test_a_worker_that_ends_waits_for_no_answer(fake: FakeEngine, tmp_path: Path) -> None:
    fake.start()
    wanted_back = Event()

    def check() -> None:
        if wanted_back.is_set():
            raise Stop

    timer = Timer(0.5, wanted_back.set)
    timer.start()
    began = time.monotonic()
    with (
        EngineClient(f"unix:{tmp_path / 'engine.sock'}", check=check) as engine,
        pytest.raises(Stop),
    ):
        ask(engine, "flood")
    assert time.monotonic() - began < 10
    timer.join()
