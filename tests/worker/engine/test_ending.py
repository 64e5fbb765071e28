"""How an engine ends, closed or broken: whoever waits for it is told, and so is its process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.store import Store
from models.wire import EmbedRequest, Input
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


@pytest.mark.parametrize(("dies", "code"), [(True, "engine_dead"), (False, "engine_stopping")])
def test_requests_that_were_being_read_when_it_ended_are_told_so(
    engine: Engine, *, dies: bool, code: str
) -> None:
    """They were let in before; nobody is left to look at them."""
    read = threading.Event()
    engine._reception._thread.submit(read.wait, 20)  # a long prompt of somebody else

    def end() -> None:
        if dies:
            engine._inbox.put(break_down)
        else:
            engine.close()

    async def play() -> list[Any]:
        embedding = engine.embed(EmbedRequest(inputs=[Input(ids=PROMPT)]))
        tasks = [asyncio.create_task(one) for one in (ask(engine, order(PROMPT)), embedding)]
        await until(lambda: engine._reception.coming == 2)
        ending = asyncio.create_task(asyncio.to_thread(end))
        await until(lambda: not engine._thread.is_alive())
        read.set()
        await ending
        both = asyncio.gather(*tasks, return_exceptions=True)
        return await asyncio.wait_for(both, 20)

    assert [error.code for error in asyncio.run(play())] == [code, code]
    assert not engine.busy


def test_what_was_posted_behind_the_end_is_refused(engine: Engine) -> None:
    async def play() -> Any:
        held = threading.Event()
        engine._inbox.put(lambda: held.wait(20) and None)
        engine._inbox.put(break_down)
        task = asyncio.create_task(ask(engine, order(PROMPT)))
        await until(lambda: engine.busy and engine._reception.coming == 0)
        held.set()
        return await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)

    assert asyncio.run(play())[0].code == "engine_dead"


def test_an_inspection_whose_files_came_too_late_is_refused(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    class Slow(Store):
        asked, go = threading.Event(), threading.Event()

        def fetch_tree(self, digest: str, folder: Path) -> Path:
            self.asked.set()
            assert self.go.wait(20)
            return super().fetch_tree(digest, folder)

    store = Slow(world.settings.store)
    engine = start_engine(store=store)

    async def play() -> Any:
        task = asyncio.create_task(engine.inspect(world.adapters[0].digest))
        await until(store.asked.is_set)
        await asyncio.to_thread(engine.close)
        store.go.set()
        return await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)

    assert asyncio.run(play())[0].code == "engine_stopping"
