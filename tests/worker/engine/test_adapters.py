"""Adapter versions: loaded once, kept while used, dropped when memory is short, refused if bad."""

import asyncio
import threading
import time
from collections.abc import Callable, Container
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from core.errors import Corrupt, GraftworkError, InvalidRequest, NotFound
from core.store import Files, Store
from models.nn.artifact import load_artifact
from models.nn.terms import Terms
from models.wire import AdapterRef, EmbedRequest, GenerateRequest, Input
from tests.worker.engine.conftest import Answer, World, ask, ask_all, order, put_adapter, until
from worker.engine.engine import Engine

PROMPT = list(range(10, 30))


def size_of(world: World, adapter: AdapterRef) -> int:
    artifact = load_artifact(world.settings.data_folder / adapter.name, shape=world.backbone.shape)
    return Terms.of(artifact.method, artifact.tensors, world.backbone.base).bytes


def resident(engine: Engine) -> list[str]:
    return [entry["digest"] for entry in engine.health()["resident"]]


def ids(engine: Engine, adapter: AdapterRef | None) -> list[int]:
    return ask_all(engine, [order(PROMPT, adapter=adapter, logprobs=True)])[0].ids


def test_the_least_recently_used_leaves_and_comes_back_the_same(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    first, second, third = world.adapters[0], world.adapters[1], world.adapters[2]
    budget = sum(size_of(world, adapter) for adapter in (first, second))
    engine = start_engine(adapter_bytes=budget)
    before = [ids(engine, adapter) for adapter in (first, second)]
    assert resident(engine) == [first.digest, second.digest]
    ids(engine, first)
    ids(engine, third)
    assert second.digest not in resident(engine)
    assert resident(engine)[-1] == third.digest
    assert sum(entry["bytes"] for entry in engine.health()["resident"]) <= budget
    assert [ids(engine, adapter) for adapter in (first, second)] == before
    assert all(entry["pins"] == 0 for entry in engine.health()["resident"])


def test_memory_for_one_serves_many_at_once(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    """Versions that are in use stay; the others wait for them, and nobody gets wrong weights."""
    roomy = start_engine()
    expected = [ids(roomy, adapter) for adapter in world.adapters]
    tight = start_engine(adapter_bytes=max(size_of(world, a) for a in world.adapters))
    orders = [order(PROMPT, adapter=a, logprobs=True) for a in world.adapters]
    answers = ask_all(tight, orders * 2)
    assert [answer.ids for answer in answers] == expected * 2


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


def test_one_that_is_dropped_while_it_waits_for_room_serves_and_goes(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    first, second = world.adapters[0], world.adapters[1]
    engine = start_engine(adapter_bytes=max(size_of(world, a) for a in (first, second)))

    async def play() -> Any:
        long = order(PROMPT, adapter=first, max_tokens=150, ignore_eos=True)
        running = asyncio.create_task(ask(engine, long))
        await until(lambda: engine.health()["rows"] == 1)
        waiting = asyncio.create_task(ask(engine, order(PROMPT, adapter=second)))
        loads = engine.metrics.adapter_loads
        await until(lambda: loads._value.get() == 2)
        engine.drop(second.digest)
        await running
        return await waiting

    assert asyncio.run(play()).reasons
    assert resident(engine) == []


def test_what_nobody_waits_for_any_more_keeps_no_room_from_others(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    first, second, third = (spoilt(world, "alike", seed=seed) for seed in range(3))
    engine = start_engine(adapter_bytes=size_of(world, first))
    loads = engine.metrics.adapter_loads

    async def play() -> Any:
        long = order(PROMPT, adapter=first, max_tokens=150, ignore_eos=True)
        running = asyncio.create_task(ask(engine, long))
        await until(lambda: loads._value.get() == 1)
        leaving = asyncio.create_task(ask(engine, order(PROMPT, adapter=second)))
        await until(lambda: loads._value.get() == 2)
        waiting = asyncio.create_task(ask(engine, order(PROMPT, adapter=third)))
        await until(lambda: loads._value.get() == 3)
        assert not running.done()
        leaving.cancel()
        await running
        return await asyncio.wait_for(waiting, 20)

    assert asyncio.run(play()).reasons


def test_the_turn_of_a_version_comes_whatever_others_are_asked_for(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    flooded, other = world.adapters[:2]
    engine = start_engine(adapter_bytes=max(size_of(world, a) for a in (flooded, other)))
    asked = order(PROMPT, adapter=flooded, max_tokens=40, ignore_eos=True)
    answered: list[Any] = []

    async def flood(begin: float) -> None:
        await asyncio.sleep(begin)
        while not answered:
            await ask(engine, asked)

    async def play() -> None:
        floods = [asyncio.create_task(flood(0.05 * number)) for number in range(3)]
        await until(lambda: engine.health()["rows"] >= 2)
        answered.append(await asyncio.wait_for(ask(engine, order(PROMPT, adapter=other)), 20))
        await asyncio.gather(*floods)

    asyncio.run(play())
    assert answered[0].reasons


def test_a_large_version_comes_to_its_turn_among_many_small_ones(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    small = [spoilt(world, "small", seed=seed) for seed in range(3)]
    large = spoilt(world, "large", rank=6)
    budget = sum(size_of(world, one) for one in small)
    assert size_of(world, large) == budget
    engine = start_engine(adapter_bytes=budget)
    answered: list[Any] = []

    async def flood(adapter: AdapterRef, begin: float) -> None:
        await asyncio.sleep(begin)
        while not answered:
            await ask(engine, order(PROMPT, adapter=adapter, max_tokens=30, ignore_eos=True))

    async def play() -> None:
        begins = [(one, 0.02 * number) for number, one in enumerate(small * 2)]
        floods = [asyncio.create_task(flood(*each)) for each in begins]
        await until(lambda: engine.health()["rows"] >= 4)
        answered.append(await asyncio.wait_for(ask(engine, order(PROMPT, adapter=large)), 20))
        await asyncio.gather(*floods)

    asyncio.run(play())
    assert answered[0].reasons


def test_what_was_closed_is_open_again_when_nobody_wants_the_room_any_more(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    """The engine has no other work then, so nothing would wake it for a second look."""
    busy, idle = (spoilt(world, "small", seed=seed) for seed in range(2))
    large = spoilt(world, "large", rank=4)
    engine = start_engine(adapter_bytes=size_of(world, large))
    ids(engine, idle)
    assert engine._opened is not None
    loop = engine._opened.loop
    line, cache = loop._line, loop.adapters

    def cancel() -> None:
        leaving = [*cache._resident[busy.digest].holders]
        leaving += [request for request in line if request.adapter == large]
        for request in leaving:
            loop.cancel(request)

    async def play() -> Answer:
        long = order(PROMPT, adapter=busy, max_tokens=180, ignore_eos=True)
        left = [asyncio.create_task(ask(engine, long))]
        await until(lambda: engine.health()["rows"] == 1)
        left.append(asyncio.create_task(ask(engine, order(PROMPT, adapter=large))))
        await until(lambda: idle.digest in cache._closed)
        late = asyncio.create_task(ask(engine, order(PROMPT, adapter=idle)))
        await until(lambda: engine.health()["waiting"] == 2)
        assert not left[0].done()
        engine._inbox.put(cancel)
        answer = await asyncio.wait_for(late, 20)
        for task in left:
            task.cancel()
        return answer

    assert asyncio.run(play()).reasons


def test_one_that_makes_room_still_serves_all_of_a_request_that_has_begun(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    first, second = (spoilt(world, "alike", seed=seed) for seed in range(2))
    engine = start_engine(adapter_bytes=size_of(world, first), rows=2)

    async def play() -> list[Answer]:
        many = order(PROMPT, adapter=first, n=6, max_tokens=30, ignore_eos=True)
        running = asyncio.create_task(ask(engine, many))
        await until(lambda: engine.health()["rows"] > 0)
        waiting = ask(engine, order(PROMPT, adapter=second))
        return await asyncio.wait_for(asyncio.gather(running, waiting), 20)

    answers = asyncio.run(play())
    assert [len(answer.reasons) for answer in answers] == [6, 1]


def test_a_request_that_is_broken_off_leaves_its_version_to_others(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    first, second = (spoilt(world, "alike", seed=seed) for seed in range(2))
    engine = start_engine(adapter_bytes=size_of(world, first))

    async def play() -> Answer:
        long = order(PROMPT, adapter=first, max_tokens=150, ignore_eos=True)
        running = asyncio.create_task(ask(engine, long))
        await until(lambda: engine.health()["rows"] > 0)
        running.cancel()
        return await asyncio.wait_for(ask(engine, order(PROMPT, adapter=second)), 20)

    assert asyncio.run(play()).reasons
    assert resident(engine) == [second.digest]


@pytest.mark.parametrize("kind", ["choices", "inputs"])
def test_a_request_ends_with_the_version_that_it_began_with(
    world: World, start_engine: Callable[..., Engine], kind: str
) -> None:
    """Also where all its rows end in one step while others of it wait."""
    store = Store(world.settings.store)
    engine = start_engine(store=store, rows=2)
    adapter = spoilt(world, "leaving", seed=7)
    writing = replace(order(PROMPT, max_tokens=12, n=6, ignore_eos=True), adapter=adapter)
    reading = EmbedRequest(inputs=[Input(ids=PROMPT)] * 30, adapter=adapter)

    async def play() -> Any:
        answer = ask(engine, writing) if kind == "choices" else engine.embed(reading)
        running = asyncio.create_task(answer)
        await until(lambda: engine.health()["rows"] > 0)
        engine.drop(adapter.digest)
        store.delete_tree(adapter.digest)
        return await running

    given = asyncio.run(play())
    assert len(given.reasons if kind == "choices" else given.vectors) in (6, 30)
    assert resident(engine) == []


def spoilt(world: World, name: str, *, seed: int = 1, rank: int = 2, **options: Any) -> AdapterRef:
    return put_adapter(
        world.store,
        world.settings.data_folder / f"{name}-{time.monotonic_ns()}",
        backbone=world.backbone,
        block={"type": "lora", "rank": rank},
        seed=seed,
        **options,
    )


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


def test_an_adapter_over_the_whole_budget_is_refused(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine(adapter_bytes=100)
    refused = ask_all(engine, [order(PROMPT, adapter=world.adapters[0])])[0]
    assert isinstance(refused, InvalidRequest)
    assert refused.code == "adapter_too_large"


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
    assert fine.reasons
