"""Steps that follow each other in C++ while nobody reads along and nothing else is to be done."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from core.errors import InvalidRequest
from models.nn.kernels.native import library, reason
from models.nn.kernels.native.step import NativeStep
from models.wire import ClassifyRequest, GenerateRequest, Input
from tests.worker.engine.conftest import Taken, World, ask, ask_all, order
from tests.worker.engine.suited import BFLOAT16, suited_world
from worker.engine.engine import Engine
from worker.engine.reading import Reading
from worker.engine.request import Outbox
from worker.engine.writer import TOLD_TOGETHER

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return suited_world(tmp_path_factory.mktemp("stretches"))


def most(taken: Taken) -> int:
    return max((steps for _, steps in taken), default=1)


def asked(place: int, **sampling: Any) -> GenerateRequest:
    prompt = [7 + (place * 31 + i * i) % 200 for i in range(5 + place)]
    return order(prompt, **{"max_tokens": 30 + 7 * place, "ignore_eos": place % 2 == 0, **sampling})


def whole(request: GenerateRequest) -> GenerateRequest:
    return msgspec.structs.replace(request, stream=False)


@pytest.mark.usefixtures("told_at_once")
def test_answers_are_those_of_single_steps(
    start_engine: Callable[..., Engine], taken: Taken
) -> None:
    engine = start_engine(compute=BFLOAT16, drafts=False)
    requests = [*(asked(place) for place in range(6)), asked(2, n=2), asked(0, max_tokens=None)]
    streamed = ask_all(engine, requests)
    assert {steps for _, steps in taken} == {1}

    def counted() -> float:
        count = "graftwork_engine_step_seconds_count"
        return engine.metrics.registry.get_sample_value(count) or 0

    before = counted()
    taken.clear()
    told = ask_all(engine, [whole(request) for request in requests])
    assert most(taken) > 10
    for one, other in zip(streamed, told, strict=True):
        assert (one.texts, one.reasons, one.last) == (other.texts, other.reasons, other.last)
    assert counted() - before >= sum(steps for _, steps in taken)


@pytest.mark.usefixtures("told_at_once")
@pytest.mark.parametrize(
    "other",
    [
        asked(1, max_tokens=150),
        whole(asked(1, max_tokens=150, stop=["never said"])),
        whole(asked(1, max_tokens=150, temperature=1.0, seed=3)),
        whole(asked(1, max_tokens=150, logprobs=True)),
    ],
)
def test_beside_a_row_that_needs_something_after_every_step_steps_are_single(
    start_engine: Callable[..., Engine], taken: Taken, other: GenerateRequest
) -> None:
    engine = start_engine(compute=BFLOAT16, drafts=False)
    first = whole(asked(0, max_tokens=150))
    alone = ask_all(engine, [first])[0]
    assert most(taken) > 10
    taken.clear()
    assert ask_all(engine, [first, other])[0].texts == alone.texts
    assert {steps for rows, steps in taken if rows == 2} <= {1}


@pytest.mark.parametrize("least", [7, 40, 60])
def test_an_end_that_may_not_be_drawn_yet_is_replaced(
    start_engine: Callable[..., Engine],
    taken: Taken,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
) -> None:
    """The commonest token is declared the end; with logprobs tokens are drawn from logits."""
    engine = start_engine(compute=BFLOAT16, drafts=False)

    def orders(**more: Any) -> list[GenerateRequest]:
        given = {"max_tokens": 60, **more}
        return [
            whole(asked(0, **{"min_tokens": least, **given})),
            whole(asked(1, **{"min_tokens": least, **given})),
            whole(asked(2, **given)),
        ]

    free = ask_all(engine, orders(logprobs=True, min_tokens=0))
    ids = [one for answer in free[:2] for one in answer.ids[:least]]
    end = max(set(ids), key=ids.count)
    monkeypatch.setattr(engine._opened.renderer, "eos_ids", frozenset({end}), raising=False)  # type: ignore[union-attr]
    expected = ask_all(engine, orders(logprobs=True))
    taken.clear()
    found = ask_all(engine, orders())
    assert most(taken) > 1
    for one, other in zip(expected, found, strict=True):
        assert (one.texts, one.reasons, one.last) == (other.texts, other.reasons, other.last)
    assert all(end not in answer.ids[:least] for answer in expected[:2])


def test_where_drafts_are_looked_for_steps_are_single(
    start_engine: Callable[..., Engine], taken: Taken
) -> None:
    engine = start_engine(compute=BFLOAT16)
    assert ask_all(engine, [whole(asked(0))])[0].reasons
    assert most(taken) == 1


def test_a_long_answer_is_told_in_parts(start_engine: Callable[..., Engine], taken: Taken) -> None:
    engine = start_engine(compute=BFLOAT16, drafts=False)
    answer = ask_all(engine, [whole(asked(0, max_tokens=3 * TOLD_TOGETHER))])[0]
    assert answer.last.completion_tokens == 3 * TOLD_TOGETHER
    assert most(taken) <= TOLD_TOGETHER
    assert sum(steps for _, steps in taken) > 2 * TOLD_TOGETHER


def test_what_is_posted_has_its_turn_after_the_step_at_work(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(compute=BFLOAT16, drafts=False)
    events: list[int | str] = []
    go_on = NativeStep.go_on

    def posted(self: NativeStep, *batch: Any, **options: Any) -> Any:
        if not events:
            engine._inbox.put(lambda: events.append("its turn"))
        steps = go_on(self, *batch, **options)
        events.append(len(steps))
        return steps

    monkeypatch.setattr(NativeStep, "go_on", posted)
    assert asyncio.run(ask(engine, whole(asked(0)))).reasons
    assert events[:2] == [1, "its turn"]
    assert max(event for event in events[2:] if isinstance(event, int)) > 10


def test_what_is_refused_is_told_before_steps_go_on(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that the engine's thread refuses waits for the step at work, not for a stretch."""
    engine = start_engine(compute=BFLOAT16, drafts=False)
    events: list[int | str] = []
    go_on, flush = NativeStep.go_on, Outbox.flush

    async def play() -> None:
        unlabelled = ClassifyRequest(inputs=[Input(text="a b")])
        reading = Reading(adapter=None, loop=asyncio.get_running_loop(), rows=1, order=unlabelled)

        def arrives_amid(self: NativeStep, *batch: Any, **options: Any) -> Any:
            if not events:
                engine._inbox.put(lambda: engine._opened.loop.add(reading))  # type: ignore[union-attr]
            steps = go_on(self, *batch, **options)
            events.append(len(steps))
            return steps

        monkeypatch.setattr(NativeStep, "go_on", arrives_amid)
        assert (await ask(engine, whole(asked(0)))).reasons
        with pytest.raises(InvalidRequest, match="labels"):
            await reading.result()

    def told(self: Outbox) -> None:
        waiting = [event for events in self._waiting.values() for _, event in events]
        events.extend("told" for event in waiting if isinstance(event, InvalidRequest))
        flush(self)

    monkeypatch.setattr(Outbox, "flush", told)
    asyncio.run(play())
    assert events[:2] == [1, "told"]
    assert max(event for event in events[2:] if isinstance(event, int)) > 10
