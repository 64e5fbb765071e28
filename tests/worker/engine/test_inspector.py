"""Several adapters that are looked at together: what one does to the others, and what stays."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import Unavailable
from core.store import Store
from tests.worker.engine.conftest import World, until
from worker.engine import inspect as inspecting
from worker.engine.engine import Engine
from worker.engine.inspect import SIDE_BY_SIDE


class SlowStore(Store):
    """Gives nothing of one adapter before it is told to."""

    def __init__(self, url: str, *, slow: str) -> None:
        super().__init__(url)
        self.slow = slow
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def read_tree(self, digest: str) -> dict[str, str]:
        if digest == self.slow:
            self.begun.release()
            assert self.go.wait(20)
        return super().read_tree(digest)


@pytest.fixture
def store(world: World) -> Iterator[SlowStore]:
    store = SlowStore(world.settings.store, slow=world.adapters[0].digest)
    yield store
    store.go.set()


@pytest.fixture
def engine(start_engine: Callable[..., Engine], store: SlowStore) -> Engine:
    return start_engine(store=store)


def left_over(world: World) -> list[Path]:
    return list(world.settings.uploads_folder.iterdir())


async def begin(engine: Engine, store: SlowStore, *, count: int) -> "list[asyncio.Task[Any]]":
    """Have so many wait for the store."""
    tasks = [asyncio.create_task(engine.inspect(store.slow)) for _ in range(count)]
    for _ in tasks:
        assert await asyncio.to_thread(store.begun.acquire, timeout=20)
    return tasks


def test_one_that_hangs_in_the_store_holds_up_no_other(
    world: World, engine: Engine, store: SlowStore
) -> None:
    async def play() -> None:
        hung = await begin(engine, store, count=SIDE_BY_SIDE - 1)
        others = [engine.inspect(adapter.digest) for adapter in world.adapters[1:]]
        found = await asyncio.wait_for(asyncio.gather(*others), 20)
        assert [one.problems for one in found] == [[] for _ in others]
        assert engine.busy
        store.go.set()
        assert [one.problems for one in await asyncio.gather(*hung)] == [[] for _ in hung]

    asyncio.run(play())
    assert not engine.busy
    assert left_over(world) == []


def test_one_that_never_had_its_turn_is_told_that_the_engine_ends(
    world: World, engine: Engine, store: SlowStore
) -> None:
    async def play() -> Any:
        hung = await begin(engine, store, count=SIDE_BY_SIDE)
        waiting = asyncio.create_task(engine.inspect(world.adapters[1].digest))
        leaving = asyncio.create_task(engine.inspect(world.adapters[1].digest))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.to_thread(engine.close)
        told = await asyncio.wait_for(asyncio.gather(waiting, leaving, return_exceptions=True), 20)
        store.go.set()
        return [*told, *await asyncio.gather(*hung, return_exceptions=True)]

    waiting, leaving, *begun = asyncio.run(play())
    assert isinstance(leaving, asyncio.CancelledError)
    assert [type(error) for error in (waiting, *begun)] == [Unavailable] * (1 + SIDE_BY_SIDE)
    assert waiting.code == "engine_stopping"


def test_they_are_read_one_at_a_time(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, at_once, most = inspecting.read_files, 0, 0

    def noted(folder: Path) -> dict[str, bytearray]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return read(folder)

    monkeypatch.setattr(inspecting, "read_files", noted)

    async def play() -> None:
        await asyncio.gather(*(engine.inspect(adapter.digest) for adapter in world.adapters[1:5]))

    asyncio.run(play())
    assert most == 1


@pytest.mark.parametrize("stays", [True, False])
def test_nothing_of_it_lies_about_even_if_nobody_waits_any_more(
    world: World, engine: Engine, store: SlowStore, *, stays: bool
) -> None:
    """A store that takes its time gives the files after their caller has left."""

    async def play() -> None:
        (asked,) = await begin(engine, store, count=1)
        assert len(left_over(world)) == 1
        if not stays:
            asked.cancel()
        await asyncio.sleep(0)
        store.go.set()
        await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: not left_over(world))

    asyncio.run(play())
