"""How an engine ends, closed or broken: whoever waits for it is told, and so is its process."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.worker.engine.conftest import World, ask, ask_all, engine_settings, order, until
from worker.engine.blocks import Blocks
from worker.engine.engine import Engine
from worker.engine.loop import Loop
from worker.engine.runner import Runner

PROMPT = list(range(10, 30))


@pytest.fixture
def deaths() -> list[str]:
    """What was said of engines that died."""
    return []


@pytest.fixture
def engine(world: World, deaths: list[str]) -> Iterator[Engine]:
    settings = world.settings.model_copy(update={"engine": engine_settings()})
    engine = Engine(settings, died=lambda: deaths.append("died"))
    engine.start()
    asyncio.run(until(lambda: engine.health()["ready"]))
    yield engine
    engine.close()


def break_down(*_: Any, **__: Any) -> None:
    raise RuntimeError("device-side assert triggered")


def test_closing_ends_requests_with_an_error(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine()

    async def play() -> Any:
        task = asyncio.create_task(ask(engine, order(PROMPT, max_tokens=None, ignore_eos=True)))
        await until(lambda: engine.health().get("rows") == 1)
        await asyncio.to_thread(engine.close)
        late = await asyncio.gather(ask(engine, order(PROMPT)), return_exceptions=True)
        return await task, late[0]

    cut, late = asyncio.run(play())
    assert (cut.last.status, cut.last.code) == (503, "engine_stopping")
    assert late.code == "engine_stopping"
    assert not engine.health()["ready"]


def test_a_base_that_is_not_there_ends_the_engine(world: World, tmp_path: Any) -> None:
    died = []
    settings = world.settings.model_copy(update={"data_dir": tmp_path})
    engine = Engine(settings, died=lambda: died.append(True))
    engine.start()
    asyncio.run(until(lambda: died == [True]))
    assert not engine.health()["ready"]
    assert ask_all(engine, [order(PROMPT)])[0].code == "engine_dead"
    engine.close()


def test_a_device_that_fails_for_good_ends_the_engine_and_every_request(
    engine: Engine, deaths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sticky fault nothing works: neither a step, nor wiping what a row has left behind."""

    async def play() -> list[Any]:
        asked = [order(PROMPT, max_tokens=200, ignore_eos=True, n=rows) for rows in (5, 3, 1)]
        tasks = [asyncio.create_task(ask(engine, one)) for one in asked]
        await until(lambda: (engine.health()["rows"], engine.health()["waiting"]) == (8, 1))
        monkeypatch.setattr(Runner, "run", break_down)
        monkeypatch.setattr(Blocks, "wipe", break_down)
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    answers = asyncio.run(play())
    assert [answer.last.code for answer in answers] == [
        "engine_fault",
        "engine_dead",
        "engine_dead",
    ]
    asyncio.run(until(lambda: deaths == ["died"]))
    assert ask_all(engine, [order(PROMPT)])[0].code == "engine_dead"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_is_told_even_if_its_requests_cannot_be(
    engine: Engine, deaths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "fail_all", break_down)
    engine._inbox.put(break_down)
    asyncio.run(until(lambda: deaths == ["died"]))
    assert ask_all(engine, [order(PROMPT)])[0].code == "engine_dead"
