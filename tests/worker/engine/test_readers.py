"""What readers are told, and when: the first token at once, those of a crowd several together."""

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from models.nn.kernels.native import library, reason
from models.nn.methods import parse_method
from models.wire import GenerateDelta, GenerateRequest
from tests.worker.engine.conftest import (
    Taken,
    TinyProblem,
    World,
    ask_all,
    order,
    store_kind,
)
from tests.worker.engine.suited import BFLOAT16, suited_world
from worker.engine import writer
from worker.engine.engine import Engine
from worker.engine.writer import MOST_SECONDS, READER_SECONDS, TOLD_TOGETHER, _told_again

TOKENS = 2 * TOLD_TOGETHER + 9
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"temperature": 1.0, "seed": 5},
    {"n": 3},
    {"ignore_eos": False},
    {"logprobs": False},
    {"logprobs": False, "ignore_eos": False, "n": 2},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return suited_world(tmp_path_factory.mktemp("readers"))


@pytest.fixture
def told_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READER_SECONDS", "MOST_SECONDS"):
        monkeypatch.setattr(writer, name, 1000.0)


def asked(**sampling: Any) -> GenerateRequest:
    given = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": True, **sampling}
    return order(range(9, 20), **given)


async def told(engine: Engine, request: GenerateRequest) -> list[GenerateDelta]:
    return [line async for line in engine.generate(request) if isinstance(line, GenerateDelta)]


def deltas(engine: Engine, request: GenerateRequest) -> list[GenerateDelta]:
    return asyncio.run(told(engine, request))


def counts(told: Sequence[GenerateDelta]) -> list[int]:
    return [len(delta.tokens) for delta in told]


@pytest.mark.usefixtures("told_at_once")
def test_without_a_pause_every_token_is_told_by_itself(
    start_engine: Callable[..., Engine],
) -> None:
    assert counts(deltas(start_engine(), asked())) == [1] * TOKENS


@pytest.mark.usefixtures("told_late")
def test_in_a_pause_the_first_token_is_told_and_so_is_a_long_silence(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine()
    assert counts(deltas(engine, asked())) == [1, TOLD_TOGETHER, TOLD_TOGETHER, 8]
    assert counts(deltas(engine, asked(max_tokens=1))) == [1]


@pytest.mark.skipif(library() is None, reason=reason())
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_when_it_is_told_changes_nothing_of_what_is_told(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    """By the C++ step, where a row's bits do not depend on the rows that are beside it."""
    engine, found = start_engine(rows=4, compute=BFLOAT16), []
    for seconds in (0.0, 0.004, 1000.0):
        monkeypatch.setattr(writer, "READER_SECONDS", seconds)
        found.append(ask_all(engine, [asked(**sampling), asked(max_tokens=30, **sampling)]))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert (one.texts, one.tokens) == (same.texts, same.tokens)
            assert (one.reasons, one.last) == (same.reasons, same.last)


@pytest.mark.usefixtures("told_late")
def test_a_stop_string_is_found_with_the_token_that_ends_it(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine()
    text = "".join(delta.text for delta in deltas(engine, asked(max_tokens=40)))
    stopped = ask_all(engine, [asked(stop=[text[6:9]])])[0]
    assert stopped.texts[0] == text[: text.index(text[6:9])]
    assert stopped.last.completion_tokens < 40


@pytest.mark.skipif(library() is None, reason=reason())
@pytest.mark.usefixtures("told_late")
def test_steps_follow_each_other_until_readers_are_told(
    start_engine: Callable[..., Engine], taken: Taken
) -> None:
    engine = start_engine(compute=BFLOAT16, drafts=False)
    assert ask_all(engine, [asked(logprobs=False)])[0].last.completion_tokens == TOKENS
    assert max(steps for _, steps in taken) > 10


def test_a_pause_is_as_long_as_readers_are_many_up_to_a_bound() -> None:
    readers: list[Any] = [SimpleNamespace(told_at=5.0 + place) for place in range(10_000)]
    assert _told_again([]) == inf
    assert _told_again(readers[:1]) == 5.0 + READER_SECONDS
    assert _told_again(readers[2:5]) == 7.0 + 3 * READER_SECONDS
    assert _told_again(readers) == 5.0 + MOST_SECONDS


def test_readers_who_are_told_often_do_not_keep_others_waiting(
    world: World, start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of whole weights have turns of their own."""
    engine = start_engine(rows=9, compute=BFLOAT16, drafts=False)
    monkeypatch.setattr(writer, "READER_SECONDS", 0.004)
    problem = TinyProblem(world.renderer, world.backbone)
    whole = store_kind(world, parse_method({"type": "full"}), problem=problem, number=0)
    alone = msgspec.structs.replace(asked(max_tokens=200), adapter=whole.adapter)
    crowd = [asked(max_tokens=TOKENS) for _ in range(8)]

    async def read() -> list[list[GenerateDelta]]:
        return await asyncio.gather(*(told(engine, one) for one in [alone, *crowd]))

    asyncio.run(told(engine, alone))  # the adapter is here
    for one in asyncio.run(read()):
        assert max(counts(one)) < TOLD_TOGETHER
