"""Adapter versions: loaded once, kept while used, dropped when told, refused if bad."""

import asyncio
import re
import threading
from collections.abc import Callable, Container
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from core.errors import Corrupt, GraftworkError, InvalidRequest, NotFound
from core.store import Files, Store
from models.wire import AdapterRef, GenerateRequest
from tests.worker.engine.conftest import World, ask, ask_all, order, until
from tests.worker.engine.versions import PROMPT, ids, resident, spoilt
from worker.engine.engine import Engine


class SlowStore(Store):
    """Counts fetches and holds each until told."""

    def __init__(self, world: World) -> None:
        super().__init__(world.settings.store)
        self.fetches: list[str] = []
        self.go = threading.Event()

    def read_files(self, digest: str, *, without: Container[str] = ()) -> Files:
        self.fetches.append(digest)
        assert self.go.wait(20)
        return super().read_files(digest, without=without)


def test_concurrent_first_uses_load_once_and_others_go_on(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    store = SlowStore(world)
    engine = start_engine(store=store)

    async def play() -> list[Any]:
        cold = [
            asyncio.create_task(ask(engine, order(PROMPT, adapter=world.adapters[0])))
            for _ in range(3)
        ]
        await until(lambda: len(store.fetches) > 0)
        base = await ask(engine, order(PROMPT))
        assert base.reasons
        assert not any(task.done() for task in cold)
        store.go.set()
        return await asyncio.gather(*cold)

    texts = {answer.texts[0] for answer in asyncio.run(play())}
    assert len(texts) == 1
    assert store.fetches == [world.adapters[0].digest]


def test_an_adapter_is_dropped_when_its_rows_have_ended(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    adapter = world.adapters[0]
    expected = ids(engine, adapter)

    async def play() -> list[int]:
        task = asyncio.create_task(
            ask(
                engine,
                order(PROMPT, adapter=adapter, max_tokens=150, ignore_eos=True, logprobs=True),
            )
        )
        await until(lambda: engine.health()["rows"] == 1)
        engine.drop(adapter.digest)
        return (await task).ids

    assert len(asyncio.run(play())) == 150
    assert resident(engine) == []
    engine.drop("unknown")
    assert ids(engine, adapter) == expected


def test_one_that_is_dropped_on_its_way_serves_who_waits_and_goes(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    store = SlowStore(world)
    engine = start_engine(store=store)

    async def play() -> Any:
        task = asyncio.create_task(ask(engine, order(PROMPT, adapter=world.adapters[0])))
        await until(lambda: len(store.fetches) > 0)
        engine.drop(world.adapters[0].digest)
        await ask(engine, order(PROMPT))  # what was posted before has run when this ends
        store.go.set()
        return await task

    assert asyncio.run(play()).reasons
    assert resident(engine) == []
    assert ids(engine, world.adapters[0])
    assert resident(engine) == [world.adapters[0].digest]


def test_one_that_is_dropped_on_its_way_goes_if_who_waits_for_it_leaves(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    """It has come, and its only request is cancelled before it gets a slot."""
    store, adapter = SlowStore(world), world.adapters[0]
    engine = start_engine(store=store, rows=1, context=1024)

    async def play() -> None:
        waiting = asyncio.create_task(ask(engine, order(PROMPT, adapter=adapter)))
        await until(lambda: len(store.fetches) > 0)
        engine.drop(adapter.digest)
        long = order(PROMPT, max_tokens=None, ignore_eos=True)
        running = asyncio.create_task(ask(engine, long))
        await until(lambda: engine.health()["rows"] == 1)
        store.go.set()
        await until(lambda: resident(engine) == [adapter.digest])
        waiting.cancel()
        await until(lambda: resident(engine) == [])
        running.cancel()

    asyncio.run(play())
    assert store.fetches == [adapter.digest]


def test_one_that_is_dropped_serves_those_too_that_wait_for_a_slot(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    store, adapter = SlowStore(world), world.adapters[0]
    store.go.set()
    engine = start_engine(store=store, rows=1)

    async def play() -> list[Any]:
        long = order(PROMPT, adapter=adapter, max_tokens=150, ignore_eos=True)
        tasks = [asyncio.create_task(ask(engine, one)) for one in (long, long)]
        await until(lambda: (engine.health()["rows"], engine.health()["waiting"]) == (1, 1))
        engine.drop(adapter.digest)
        return await asyncio.gather(*tasks)

    assert [answer.last.completion_tokens for answer in asyncio.run(play())] == [150, 150]
    assert store.fetches == [adapter.digest]
    assert resident(engine) == []


def test_bytes_that_are_not_those_that_were_stored_serve_nobody(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine, good = start_engine(), spoilt(world, "damaged")
    folder = world.settings.data_folder / "store" / "trees" / good.digest
    for name, change in (
        ("adapter_model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("adapter_model.safetensors", lambda content: content[:100]),
        ("graftwork.json", lambda content: content.replace(b"lora", b"none")),
    ):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(change(content))
        refused = ask_all(engine, [order(PROMPT, adapter=good)])[0]
        assert isinstance(refused, Corrupt)
        assert "hash" in refused.message
        (folder / name).write_bytes(content)
    assert ids(engine, good)


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"provenance": {"base_digest": "other"}}, InvalidRequest, "adapter_base_mismatch"),
        ({"provenance": {"renderer_digest": "other"}}, InvalidRequest, "adapter_base_mismatch"),
        ({"spoil": lambda t: next(iter(t.values())).fill_(1e30)}, Corrupt, "adapter_unusable"),
    ],
    ids=["base", "renderer", "too large"],
)
def test_what_cannot_be_served_is_refused(
    world: World,
    start_engine: Callable[..., Engine],
    options: dict[str, Any],
    error: type[GraftworkError],
    code: str,
) -> None:
    engine = start_engine()
    bad = spoilt(world, "bad", **options)
    refused, fine = ask_all(engine, [order(PROMPT, adapter=bad), order(PROMPT)])
    assert isinstance(refused, error)
    assert refused.code == code
    assert fine.reasons
    assert resident(engine) == []


def test_numbers_that_are_none_are_refused(
    world: World, start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine()
    monkeypatch.setattr("models.nn.artifact._check", lambda *args, **options: None)
    nan = spoilt(world, "nan", spoil=lambda t: next(iter(t.values())).fill_(torch.nan))
    monkeypatch.undo()
    refused, fine = ask_all(engine, [order(PROMPT, adapter=nan), order(PROMPT)])
    assert isinstance(refused, Corrupt)
    assert fine.reasons


def test_an_unknown_version_is_not_found_each_time(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    unknown = AdapterRef("ft:tiny:x::y", "0" * 64)
    for refused in ask_all(engine, [order(PROMPT, adapter=unknown)] * 3):
        assert isinstance(refused, NotFound)
        assert refused.code == "adapter_not_found"
        assert refused.param == "model"


def test_a_store_that_fails_unexpectedly_fails_only_its_requests(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    class Broken(Store):
        def read_files(self, digest: str, *, without: Container[str] = ()) -> Files:
            is_first = digest == world.adapters[0].digest
            raise ValueError("broken") if is_first else OSError("unplugged")

    engine = start_engine(store=Broken(world.settings.store))
    requests: list[GenerateRequest] = [
        order(PROMPT, adapter=world.adapters[0]),
        order(PROMPT, adapter=world.adapters[1]),
        order(PROMPT),
    ]
    broken, unplugged, fine = ask_all(engine, requests)
    assert (broken.status, broken.code) == (500, "adapter_unusable")
    assert unplugged.status == 503
    assert not re.search("broken|unplugged", broken.message + unplugged.message)
    assert fine.reasons


def test_closing_does_not_wait_for_a_store_that_hangs(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    """What comes of it in the end nobody hears."""
    store = SlowStore(world)
    engine = start_engine(store=store)

    async def play() -> Any:
        task = asyncio.create_task(ask(engine, order(PROMPT, adapter=world.adapters[0])))
        await until(lambda: len(store.fetches) > 0)
        await asyncio.wait_for(asyncio.to_thread(engine.close), 10)
        return await asyncio.gather(task, return_exceptions=True)

    assert asyncio.run(play())[0].code == "engine_stopping"
    with capture_logs() as logs:
        store.go.set()
        engine._opened.loop.adapters._helpers.shutdown(wait=True)  # type: ignore[union-attr]
    assert logs == []
    assert resident(engine) == []
