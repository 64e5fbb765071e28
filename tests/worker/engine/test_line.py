"""Whose request is put to the model next: tenants take turns, whatever each of them sends."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from tests.worker.engine.conftest import ask, order, until
from worker.engine.engine import Engine
from worker.engine.line import Line
from worker.engine.loop import OPENING_SECONDS
from worker.engine.request import Request
from worker.engine.scheduler import Scheduler

PROMPT = [5] * 9


@pytest.fixture
def line() -> Line:
    return Line(Scheduler(rows=1, prefill_tokens=1))


def put(line: Line, tenants: str) -> list[Request]:
    """Add a request of each of these tenants, in order."""
    loop = asyncio.new_event_loop()
    loop.close()
    requests = [Request(adapter=None, loop=loop, rows=1, tenant=tenant) for tenant in tenants]
    for request in requests:
        line.add(request)
    return requests


def tenants(requests: Iterable[Request]) -> str:
    return "".join(request.tenant or "" for request in requests)


def test_tenants_take_turns_and_requests_of_one_keep_their_order(line: Line) -> None:
    first, *flood = put(line, "aaaaa")
    line.open(first)
    own = put(line, "bbc")
    assert tenants(line) == "bcabaaa"
    assert [one for one in line if one in flood] == flood
    assert [one for one in line if one in own] == [own[0], own[2], own[1]]


def test_who_had_a_turn_has_the_next_one_after_all_others(line: Line) -> None:
    put(line, "ab")
    opened = list[Request]()
    for _ in range(6):
        opened.append(next(iter(line)))
        line.open(opened[-1])
        put(line, opened[-1].tenant or "")
    assert tenants(opened) == "ababab"


def test_turns_of_who_leaves_are_left_to_its_tenant(line: Line) -> None:
    _, *others = put(line, "aaaa")
    put(line, "bb")
    for request in others:
        line.leave(request)
        line.leave(request)
    put(line, "a")
    assert tenants(line) == "abba"


def test_a_flood_that_takes_long_to_open_delays_another_tenant_by_one(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(rows=8)
    writer = engine._opened.loop._writer  # type: ignore[union-attr]
    opened, seen, all_here = writer.open, list[str](), threading.Event()

    def open_slowly(generation: Request, *given: Any) -> Any:
        seen.append(generation.tenant or "")
        if generation.tenant == "many":
            assert all_here.wait(20)
            time.sleep(2 * OPENING_SECONDS)
        return opened(generation, *given)

    monkeypatch.setattr(writer, "open", open_slowly)

    async def play() -> None:
        long = ask(engine, replace(order(PROMPT, max_tokens=240, ignore_eos=True), tenant="first"))
        tasks = [asyncio.create_task(long)]
        await until(lambda: engine.health()["rows"] == 1)
        short = order(PROMPT, max_tokens=2)
        tasks += [asyncio.create_task(ask(engine, replace(short, tenant="many"))) for _ in range(9)]
        await until(lambda: "many" in seen)
        tasks.append(asyncio.create_task(ask(engine, replace(short, tenant="other"))))
        await until(lambda: engine._room.taken == 11 and engine._reception.coming == 0)
        all_here.set()
        await asyncio.gather(*tasks)

    asyncio.run(play())
    assert seen == ["first", "many", "other", *["many"] * 8]
