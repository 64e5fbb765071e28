"""Rows of every method there is, side by side: each gives what it gives alone."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.errors import InvalidRequest
from models.wire import AdapterRef, GenerateRequest
from tests.worker.engine.conftest import Kind, World, ask_all, order
from tests.worker.engine.reference import Alone
from worker.engine.engine import Engine

PROMPT = list(range(10, 30))
NEAR = 2e-4
"""Between log-probabilities. Of one PiSSA here, factors that are 6e-8 off move them by 3e-5, in
float64; a step in float32 rounds at every op."""


def generative(kinds: list[Kind]) -> list[Kind]:
    return [kind for kind in kinds if kind.method.class_labels is None]


def one_of_each(kinds: list[Kind]) -> list[Kind]:
    return list({kind.method.kind: kind for kind in generative(kinds)}.values())


def prompts(count: int, *, longest: int = 50) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]


def written(ids: list[int], adapter: AdapterRef | None, *, tokens: int) -> GenerateRequest:
    return order(ids, adapter=adapter, max_tokens=tokens, ignore_eos=True, logprobs=True)


@pytest.mark.parametrize(
    ("limits", "gap"),
    [({"rows": 40}, 0.0), ({"rows": 6, "prefill_tokens": 16}, 0.003)],
    ids=["at once", "few slots, small chunks, one after the other"],
)
def test_all_kinds_and_the_base_in_one_batch(
    world: World,
    kinds: list[Kind],
    start_engine: Callable[..., Engine],
    limits: dict[str, Any],
    gap: float,
) -> None:
    adapters = [None, *(kind.adapter for kind in generative(kinds)), None]
    asked = list(zip(prompts(len(adapters)), adapters, range(len(adapters)), strict=True))
    orders = [written(ids, adapter, tokens=4 + place % 7) for ids, adapter, place in asked]
    answers = ask_all(start_engine(**limits), orders, gap=gap)
    for (ids, adapter, place), answer in zip(asked, answers, strict=True):
        alone = Alone(world, adapter)
        expected, logprobs = alone.greedy(ids, tokens=4 + place % 7)
        assert answer.ids == expected, adapter
        assert answer.prompt_tokens == len(alone.prompt(ids))
        got = [token.logprob for token in answer.tokens[0]]
        assert got == pytest.approx(logprobs, abs=NEAR), adapter


def test_memory_for_the_largest_serves_all_kinds(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    """Versions come and go while others run, also between a request's opening and its slot."""
    chosen = one_of_each(kinds)
    orders = [written(PROMPT, kind.adapter, tokens=5) for kind in chosen] * 2
    roomy = start_engine()
    expected = [answer.ids for answer in ask_all(roomy, orders)]
    largest = max(entry["bytes"] for entry in roomy.health()["resident"])
    tight = start_engine(rows=3, adapter_bytes=largest)
    assert [answer.ids for answer in ask_all(tight, orders)] == expected
    assert sum(entry["bytes"] for entry in tight.health()["resident"]) <= largest


def test_conversations_are_shown_what_belongs_before_them(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    """Demonstrations stand after the system turn, whether or not they were computed at load."""
    engine = start_engine(prefill_tokens=16)
    shown = [kind for kind in kinds if "demonstrations" in kind.method.sites]
    for kind in shown:
        for system in ("Be brief.", None, "Be long."):
            turns = [] if system is None else [{"role": "system", "content": system}]
            messages = [*turns, {"role": "user", "content": "is it so"}]
            request = GenerateRequest(
                sampling={"temperature": 0, "max_tokens": 3, "logprobs": True, "ignore_eos": True},
                messages=messages,
                adapter=kind.adapter,
            )
            alone = Alone(world, kind.adapter)
            ids = world.renderer.prompt(alone.chat(messages))
            assert len(ids) > len(world.renderer.prompt(messages))
            answer = ask_all(engine, [request])[0]
            assert answer.prompt_tokens == len(ids)
            expected = []
            for _ in range(3):
                expected.append(int(alone.logprobs(ids + expected)[-1].argmax()))
            assert answer.ids == expected, kind.id


def test_what_is_computed_at_load_is_not_computed_again(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    tokens = engine.metrics.tokens.labels("prompt")._value
    fixed = [
        kind for kind in kinds if kind.form == "completion" and kind.method.demonstrations({}, None)
    ]
    assert fixed
    for kind in fixed:
        before = tokens.get()
        answer = ask_all(engine, [order(PROMPT, adapter=kind.adapter)])[0]
        assert tokens.get() - before == len(PROMPT)
        assert answer.prompt_tokens > len(PROMPT)


@pytest.mark.parametrize("prefill_tokens", [512, 5])
def test_the_echo_is_the_requests_own_prompt(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine], prefill_tokens: int
) -> None:
    engine = start_engine(prefill_tokens=prefill_tokens)
    for kind in generative(kinds):
        request = order(PROMPT, adapter=kind.adapter, echo=True, logprobs=True, max_tokens=1)
        answer = ask_all(engine, [request])[0]
        tokens = answer.tokens[0][: len(PROMPT)]
        assert [token.id for token in tokens] == PROMPT
        assert tokens[0].logprob is None
        alone = Alone(world, kind.adapter)
        logprobs = alone.logprobs(alone.prompt(PROMPT))[-len(PROMPT) :]
        expected = [float(logprobs[row, token]) for row, token in enumerate(PROMPT[1:])]
        got = [token.logprob for token in tokens[1:]]
        assert got == pytest.approx(expected, abs=NEAR), kind.id


def test_a_prefix_takes_room_in_the_context(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    for kind in kinds:
        rows = Alone(world, kind.adapter).terms.prefix_rows
        if not rows or kind.method.class_labels is not None:
            continue
        free, fits, over = ask_all(
            engine,
            [
                order([5] * 200, adapter=kind.adapter, max_tokens=None, ignore_eos=True),
                order([5] * 200, adapter=kind.adapter, max_tokens=56 - rows, ignore_eos=True),
                order([5] * 200, adapter=kind.adapter, max_tokens=57 - rows),
            ],
        )
        assert free.last.completion_tokens == fits.last.completion_tokens == 56 - rows
        assert (over.code, over.param) == ("context_length_exceeded", "max_tokens")


def test_memory_comes_back_when_a_version_is_dropped(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    chosen = one_of_each(kinds)
    ask_all(engine, [order(PROMPT, adapter=kind.adapter) for kind in chosen])
    assert {entry["kind"] for entry in engine.health()["resident"]} == {
        kind.method.kind for kind in chosen
    }
    loop = engine._opened.loop  # type: ignore[union-attr]
    held = [weakref.ref(resident.terms) for _, resident in loop.adapters.residents()]
    sizes = {entry["digest"]: entry["bytes"] for entry in engine.health()["resident"]}
    for kind in chosen:
        terms = Alone(world, kind.adapter).terms
        assert sizes[kind.adapter.digest] >= terms.bytes - sum(
            tensor.nbytes for tensor in (terms.prompt,) if tensor is not None
        )
        engine.drop(kind.adapter.digest)
    ask_all(engine, [order(PROMPT)])
    gc.collect()
    assert engine.health()["resident"] == []
    assert loop._runner._banks._slots == {}
    assert [terms for reference in held if (terms := reference()) is not None] == []


def test_a_fault_of_one_group_leaves_the_others(
    world: World,
    kinds: list[Kind],
    start_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = [kind for kind in kinds if not kind.method.shares_batch]
    engine = start_engine()
    orders = [written(PROMPT, a, tokens=6) for a in (None, world.adapters[0], world.adapters[2])]
    expected = [answer.ids for answer in ask_all(engine, orders)]
    backbone = engine._opened.loop._runner._backbone  # type: ignore[union-attr]

    def broken(weights: Any) -> Any:
        raise RuntimeError("no such parameter")

    ask_all(engine, [written(PROMPT, alone[0].adapter, tokens=1)])
    monkeypatch.setattr(backbone, "using", broken, raising=False)
    *answers, dead = ask_all(engine, [*orders, written(PROMPT, alone[0].adapter, tokens=6)])
    assert [answer.ids for answer in answers] == expected
    assert dead.last.code == "engine_fault"


def test_classifiers_write_nothing(
    world: World, kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    for kind in kinds:
        if kind.method.class_labels is not None:
            refused = ask_all(engine, [order(PROMPT, adapter=kind.adapter)])[0]
            assert isinstance(refused, InvalidRequest)
            assert (refused.code, refused.param) == ("not_generative", "model")
            assert "/v1/classifications" in refused.message
