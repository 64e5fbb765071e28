"""The engine's memory among adapter versions: who stays, who leaves, and whose turn it is."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from core.errors import InvalidRequest
from core.store import Store
from models.wire import AdapterRef, EmbedRequest, Input
from tests.worker.engine.conftest import Answer, World, ask, ask_all, order, until
from tests.worker.engine.versions import PROMPT, ids, order_ids, resident, size_of, spoilt
from worker.engine.engine import Engine


async def play_against_floods(
    engine: Engine, flooded: list[AdapterRef], other: AdapterRef
) -> Answer:
    """Return what one request is answered, while others for the flooded versions never cease."""
    answered: list[Answer] = []

    async def flood(adapter: AdapterRef, begin: float) -> None:
        await asyncio.sleep(begin)
        while not answered:
            await ask(engine, order(PROMPT, adapter=adapter, max_tokens=30, ignore_eos=True))

    begins = [(one, 0.02 * number) for number, one in enumerate(flooded)]
    floods = [asyncio.create_task(flood(*each)) for each in begins]
    await until(lambda: engine.health()["rows"] >= len(flooded) // 2 + 1)
    answered.append(await asyncio.wait_for(ask(engine, order(PROMPT, adapter=other)), 20))
    await asyncio.gather(*floods)
    return answered[0]


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
    answers = ask_all(tight, [order_ids(adapter) for adapter in world.adapters] * 2)
    assert [answer.ids for answer in answers] == expected * 2


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
    assert asyncio.run(play_against_floods(engine, [flooded] * 3, other)).reasons


def test_a_large_version_comes_to_its_turn_among_many_small_ones(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    small = [spoilt(world, "small", seed=seed) for seed in range(3)]
    large = spoilt(world, "large", rank=6)
    budget = sum(size_of(world, one) for one in small)
    assert size_of(world, large) == budget
    engine = start_engine(adapter_bytes=budget)
    assert asyncio.run(play_against_floods(engine, small * 2, large)).reasons


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
    if kind == "choices":
        assert len(given.reasons) == 6
    else:
        assert len(given.vectors) == 30
    assert resident(engine) == []


def test_an_adapter_over_the_whole_budget_is_refused(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine(adapter_bytes=100)
    refused = ask_all(engine, [order(PROMPT, adapter=world.adapters[0])])[0]
    assert isinstance(refused, InvalidRequest)
    assert refused.code == "adapter_too_large"
