"""What a request may ask for and what it gets."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import torch

from models.nn.attention import PackedCausal
from models.nn.executors import NOBODY
from models.wire import (
    GenerateDelta,
    GenerateEnd,
    GenerateOpened,
    GenerateRequest,
)
from tests.worker.engine.conftest import World, ask, ask_all, order, until
from worker.engine.engine import Engine
from worker.engine.loop import OPENING_SECONDS
from worker.engine.runner import Runner
from worker.engine.sampler import likeliest
from worker.engine.scheduler import Step
from worker.engine.writer import TOLD_TOGETHER

PROMPT = list(range(10, 30))


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine()


def plain_logprobs(world: World, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden_td = world.backbone.hidden(
            torch.tensor(tokens),
            positions=torch.arange(len(tokens)),
            attention=PackedCausal([(0, len(tokens))]),
            executor=NOBODY,
        )
        return world.backbone.logits(hidden_td, executor=NOBODY).float().log_softmax(-1)


def test_logprobs_equal_a_plain_softmax(world: World, engine: Engine) -> None:
    request = order(PROMPT, logprobs=True, top_logprobs=3, temperature=0.7, seed=5, max_tokens=12)
    answer = ask_all(engine, [request])[0]
    expected = plain_logprobs(world, PROMPT + answer.ids)
    for place, token in enumerate(answer.tokens[0], start=len(PROMPT) - 1):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
        top = expected[place].topk(3)
        assert [other.id for other in token.top] == top.indices.tolist()
        assert [other.logprob for other in token.top] == pytest.approx(
            top.values.tolist(), abs=1e-4
        )


@pytest.mark.parametrize("prefill_tokens", [512, 7])
def test_echo_gives_the_prompt_with_its_logprobs(
    world: World, start_engine: Callable[..., Engine], prefill_tokens: int
) -> None:
    engine = start_engine(prefill_tokens=prefill_tokens)
    request = order(PROMPT, echo=True, logprobs=True, top_logprobs=1, max_tokens=1, ignore_eos=True)
    answer = ask_all(engine, [request])[0]
    assert answer.ids[:-1] == PROMPT
    assert answer.tokens[0][0].logprob is None
    assert answer.tokens[0][0].top == []
    expected = plain_logprobs(world, PROMPT)
    for place, token in enumerate(answer.tokens[0][1:]):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
        assert token.top[0].id == int(expected[place].argmax())


def test_echo_without_logprobs_is_text(world: World, engine: Engine) -> None:
    answer = ask_all(engine, [order("Hello there", echo=True, max_tokens=2)])[0]
    assert answer.texts[0].startswith("Hello there")
    assert answer.tokens[0] == []


def test_seeds_repeat_whatever_is_computed_beside(engine: Engine) -> None:
    def seeded(n: int = 2) -> GenerateRequest:
        return order(PROMPT, temperature=1.5, top_p=0.95, seed=-7, n=n, max_tokens=20)

    alone = ask_all(engine, [seeded()])[0]
    others = [order(PROMPT[:k], temperature=1.0, max_tokens=5 + k) for k in range(1, 12)]
    among = ask_all(engine, [*others[:6], seeded(), *others[6:], seeded(3)], gap=0.002)
    assert among[6].texts == alone.texts
    assert {index: among[-1].texts[index] for index in (0, 1)} == alone.texts
    assert alone.texts[0] != alone.texts[1]
    unseeded = ask_all(engine, [order(PROMPT, temperature=1.5, max_tokens=20)] * 2)
    assert unseeded[0].texts != unseeded[1].texts


def test_a_nucleus_of_no_mass_answers_as_no_temperature_does(engine: Engine) -> None:
    """Alone, beside what is drawn, with logprobs, and while the end may not be drawn yet."""
    for more in ({}, {"logprobs": True, "top_logprobs": 2}, {"min_tokens": 20}):
        wanted = ask_all(engine, [order(PROMPT, temperature=0.0, max_tokens=30, **more)])[0]
        narrow = order(PROMPT, temperature=1.5, top_p=0, seed=3, max_tokens=30, **more)
        drawn = order(PROMPT[3:], temperature=1.5, seed=3, max_tokens=30)
        answers = [*ask_all(engine, [narrow]), ask_all(engine, [narrow, drawn])[0]]
        assert [answer.texts for answer in answers] == [wanted.texts] * 2
        assert [answer.ids for answer in answers] == [wanted.ids] * 2


def test_choices_are_rows_of_one_request(engine: Engine) -> None:
    request = order(PROMPT, temperature=1.0, n=11, max_tokens=4, ignore_eos=True)
    answer = ask_all(engine, [request])[0]
    assert sorted(answer.reasons) == list(range(11))
    assert answer.last == GenerateEnd(prompt_tokens=len(PROMPT), completion_tokens=44)


def test_who_waits_for_a_slot_is_told_that_it_will_be_served(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine(rows=1)
    long = order(PROMPT, n=4, max_tokens=200, ignore_eos=True)

    async def play() -> tuple[Any, int]:
        async with (
            aclosing(engine.generate(long)) as running,
            aclosing(engine.generate(order(PROMPT))) as waiting,
        ):
            await anext(running)
            return await anext(waiting), engine.health()["waiting"]

    first, waiting = asyncio.run(play())
    assert (first, waiting) == (GenerateOpened(), 4)


def test_stop_strings_end_a_row_and_are_not_shown(engine: Engine) -> None:
    full = ask_all(engine, [order(PROMPT, max_tokens=30, ignore_eos=True)])[0].texts[0]
    stop = full[10:13]
    answer = ask_all(engine, [order(PROMPT, max_tokens=30, ignore_eos=True, stop=[stop])])[0]
    assert answer.texts[0] == full[: full.index(stop)]
    assert answer.reasons == {0: "stop"}


def test_the_end_of_a_text_ends_a_row(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What greedy decoding gives behind its first token is declared the end."""
    prompts = [list(range(start, start + 20)) for start in range(3, 100)]
    for prompt in prompts:
        first = ask_all(engine, [order(prompt, logprobs=True, ignore_eos=True)])[0]
        if len(set(first.ids)) > 1:
            break
    end = next(t for t in first.ids if t != first.ids[0])
    place = first.ids.index(end)
    renderer = engine._opened.renderer  # type: ignore[union-attr]
    monkeypatch.setattr(renderer, "eos_ids", frozenset({end}), raising=False)
    ended, on, forced = ask_all(
        engine,
        [
            order(prompt, logprobs=True),
            order(prompt, logprobs=True, ignore_eos=True),
            order(prompt, logprobs=True, min_tokens=place + 2),
        ],
    )
    assert ended.ids == first.ids[:place]
    assert ended.reasons == {0: "stop"}
    assert ended.last.completion_tokens == place + 1
    assert on.ids == first.ids
    assert on.reasons == {0: "length"}
    assert len(forced.ids) >= place + 1
    assert forced.ids[place] != end


def test_without_max_tokens_a_row_fills_the_context(engine: Engine) -> None:
    answer = ask_all(engine, [order(PROMPT, max_tokens=None, ignore_eos=True)])[0]
    assert answer.last.completion_tokens == 256 - len(PROMPT)
    assert answer.reasons == {0: "length"}


def test_messages_are_rendered_as_chat(world: World, engine: Engine) -> None:
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    request = GenerateRequest(sampling={"max_tokens": 2}, messages=messages)
    answer = ask_all(engine, [request])[0]
    assert answer.prompt_tokens == len(world.renderer.prompt(messages))


def lines_of(engine: Engine, request: GenerateRequest) -> list[GenerateDelta]:
    async def collect() -> list[GenerateDelta]:
        lines = [line async for line in engine.generate(request)]
        return [line for line in lines if isinstance(line, GenerateDelta)]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 9},
        {"max_tokens": TOLD_TOGETHER + 6, "ignore_eos": True, "n": 2, "seed": 3, "temperature": 1},
        {"max_tokens": 9, "logprobs": True, "top_logprobs": 2},
    ],
)
def test_a_whole_answer_is_what_is_streamed_in_few_lines(
    engine: Engine, sampling: dict[str, Any]
) -> None:
    request = order(PROMPT, **sampling)
    whole = msgspec.structs.replace(request, stream=False)
    streamed, told = ask_all(engine, [request])[0], ask_all(engine, [whole])[0]
    assert told.texts == streamed.texts
    assert told.reasons == streamed.reasons
    assert told.tokens == streamed.tokens
    assert told.last == streamed.last
    rows, tokens = sampling.get("n", 1), sampling["max_tokens"]
    assert len(lines_of(engine, whole)) <= rows * (tokens // TOLD_TOGETHER + 1)


def test_a_stop_string_ends_a_whole_answer_where_it_ends_a_stream(engine: Engine) -> None:
    text = ask_all(engine, [order(PROMPT, max_tokens=12, ignore_eos=True)])[0].texts[0]
    request = order(PROMPT, max_tokens=12, ignore_eos=True, stop=[text[4:7]])
    whole = msgspec.structs.replace(request, stream=False)
    streamed, told = ask_all(engine, [request, whole])
    assert told.texts == streamed.texts
    assert told.last.completion_tokens == streamed.last.completion_tokens < 12


def test_closing_the_iterator_frees_the_rows(engine: Engine) -> None:
    async def play() -> None:
        lines = engine.generate(order(PROMPT, n=3, max_tokens=None, ignore_eos=True))
        await anext(lines)
        assert engine.health()["rows"] + engine.health()["waiting"] == 3
        await lines.aclose()
        await until(lambda: engine.health()["rows"] == 0)

    asyncio.run(play())
    assert not engine.busy


def poisoned(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], Any]) -> None:
    """Let `act` have its way with every step in which the prompt of 13 tokens takes part."""
    run = Runner.run

    def spoilt(self: Runner, step: Step, **options: Any) -> Any:
        outcome = run(self, step, **options)
        for index, sequence in enumerate(step.drawing()):
            if len(sequence.prompt) == 13:
                outcome = act((outcome, index))
        return outcome

    monkeypatch.setattr(Runner, "run", spoilt)


def fault(_: Any) -> Any:
    raise RuntimeError("no such kernel")


def not_a_number(case: Any) -> Any:
    outcome, index = case

    def spoilt() -> torch.Tensor:
        logits_nv: torch.Tensor = outcome.logits()
        logits_nv[index, 3] = torch.nan
        return logits_nv

    return replace(outcome, logits=spoilt, likeliest=lambda: [likeliest(spoilt())])


@pytest.mark.parametrize("act", [fault, not_a_number])
def test_a_poisoned_request_does_not_hurt_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, world: World, act: Callable[[Any], Any]
) -> None:
    orders = [order(PROMPT[: 5 + i], adapter=a) for i, a in enumerate([None, *world.adapters[:5]])]
    expected = [answer.texts for answer in ask_all(engine, orders)]
    poisoned(monkeypatch, act)
    *answers, dead = ask_all(engine, [*orders, order([7] * 13)])
    assert [answer.texts for answer in answers] == expected
    assert dead.last.code == "engine_fault"
    assert dead.last.status == 500
    assert "kernel" not in dead.last.message
    monkeypatch.undo()
    assert [answer.texts for answer in ask_all(engine, orders)] == expected


def test_a_failed_rows_slot_is_clean_for_the_next(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next owner is shorter, so the NaN lies where it never writes but its masks reach."""
    engine = start_engine(rows=1)
    expected = ask_all(engine, [order(PROMPT[:5])])[0].texts
    blocks = engine._opened.loop._blocks  # type: ignore[union-attr]

    def leave_nan(case: Any) -> Any:
        for cache in (*blocks.keys, *blocks.values):
            cache[0, :, :13] = torch.nan
        return not_a_number(case)

    poisoned(monkeypatch, leave_nan)
    assert ask_all(engine, [order([7] * 13)])[0].last.code == "engine_fault"
    assert ask_all(engine, [order(PROMPT[:5])])[0].texts == expected


def test_rows_have_steps_between_requests_that_take_long_to_open(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(rows=8)
    loop = engine._opened.loop  # type: ignore[union-attr]
    opened, run, seen = loop._writer.open, Runner.run, list[str]()

    def open_slowly(*given: Any) -> Any:
        seen.append("open")
        time.sleep(2 * OPENING_SECONDS)
        return opened(*given)

    def noted(self: Runner, *given: Any, **options: Any) -> Any:
        seen.append("step")
        return run(self, *given, **options)

    monkeypatch.setattr(loop._writer, "open", open_slowly)
    monkeypatch.setattr(Runner, "run", noted)

    async def play() -> None:
        written = order([5] * 9, max_tokens=200, ignore_eos=True)
        first = asyncio.create_task(ask(engine, written))
        await until(lambda: "step" in seen)
        await asyncio.gather(*(ask(engine, order(PROMPT, max_tokens=2)) for _ in range(4)))
        await first

    asyncio.run(play())
    assert seen.count("open") == 5
    assert ("open", "open") not in pairwise(seen)
