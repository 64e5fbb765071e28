"""Prompts computed before: the same tokens with and without, and never what is another's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.wire import AdapterRef, EmbedReply, EmbedRequest, GenerateRequest, Input
from tests.worker.engine.conftest import (
    Answer,
    Kind,
    World,
    ask_all,
    order,
)
from worker.engine.engine import Engine
from worker.engine.shared import TOKENS

LONG = [10 + (7 * place) % 200 for place in range(3 * TOKENS + 5)]
BRANCH = [*LONG[: 2 * TOKENS], *range(30, 60)]


def whose(request: GenerateRequest, tenant: str | None = "a") -> GenerateRequest:
    return GenerateRequest(
        sampling=request.sampling,
        adapter=request.adapter,
        prompt_ids=request.prompt_ids,
        tenant=tenant,
    )


def ask_one(engine: Engine, ids: list[int], *, tenant: str | None = "a", **options: Any) -> Answer:
    request = whose(order(ids, logprobs=True, **options), tenant)
    answer = ask_all(engine, [request])[0]
    assert isinstance(answer, Answer), answer
    return answer


def test_the_same_tokens_come_out_and_fewer_go_in(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine, plain = start_engine(), start_engine(prompt_bytes=0)
    for adapter in (None, world.adapters[0], world.adapters[2]):
        for ids, known in ((LONG, 0), (LONG, 3), (BRANCH, 2), (LONG[: 2 * TOKENS], 2)):
            answer = ask_one(engine, ids, adapter=adapter)
            expected = ask_one(plain, ids, adapter=adapter)
            assert answer.ids == expected.ids
            assert answer.prompt_tokens == expected.prompt_tokens == len(ids)
            assert answer.last.prompt_tokens == len(ids)
            assert answer.last.cached_tokens == min(known * TOKENS, len(ids) - 1)
            assert expected.last.cached_tokens == 0
    assert b'tokens_total{kind="cached"} ' in engine.metrics.render(engine.health())


def test_requests_that_come_together_share_what_they_begin_with(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine, plain = start_engine(), start_engine(prompt_bytes=0)
    adapter = world.adapters[0]
    asked = [(LONG, None), (BRANCH, None), (LONG, adapter), (LONG, adapter)]
    requests = [whose(order(ids, adapter=adapter, logprobs=True)) for ids, adapter in asked]
    answers, expected = ask_all(engine, requests), ask_all(plain, requests)
    assert [answer.ids for answer in answers] == [answer.ids for answer in expected]
    cached = [answer.last.cached_tokens for answer in answers]
    assert sorted(cached[:2]) == [0, 2 * TOKENS]
    assert sorted(cached[2:]) == [0, 3 * TOKENS]


def test_choices_of_one_prompt_compute_it_once(start_engine: Callable[..., Engine]) -> None:
    engine, plain = start_engine(), start_engine(prompt_bytes=0)
    request = whose(order(LONG, n=4, temperature=1.0, seed=3, logprobs=True))
    answer, expected = ask_all(engine, [request])[0], ask_all(plain, [request])[0]
    for index in range(4):
        ids, told = ([token.id for token in one.tokens[index]] for one in (answer, expected))
        assert ids == told
    assert answer.last.cached_tokens == 0
    counted = engine.metrics.render(engine.health()).decode()
    assert f'tokens_total{{kind="prompt"}} {len(LONG) + 3 * 5:.1f}' in counted
    assert f'tokens_total{{kind="cached"}} {3 * 3 * TOKENS:.1f}' in counted


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_nobody_waits_for_what_there_is_no_room_to_keep(
    world: World, start_engine: Callable[..., Engine], blocks: int
) -> None:
    shape = world.backbone.shape
    block = 2 * shape.layers * shape.kv_heads * TOKENS * shape.head_dim * 4
    engine = start_engine(prompt_bytes=blocks * block + block // 2)
    request = whose(order(LONG, n=4, max_tokens=1))
    assert isinstance(ask_all(engine, [request])[0], Answer)
    counted = engine.metrics.render(engine.health()).decode()
    assert f'tokens_total{{kind="cached"}} {3 * blocks * TOKENS:.1f}' in counted
    assert f"step_seconds_count {1 + (blocks > 0):.1f}" in counted


def test_nothing_is_shared_across_adapters_or_tenants(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    adapters = [None, *world.adapters[:3]]
    for _ in range(2):
        for tenant in ("a", "b"):
            for adapter in adapters:
                ask_one(engine, LONG, tenant=tenant, adapter=adapter)
    fresh = start_engine()
    for tenant in ("a", "b"):
        for adapter in adapters:
            first = ask_one(fresh, LONG, tenant=tenant, adapter=adapter)
            assert first.last.cached_tokens == 0
            assert ask_one(engine, LONG, tenant=tenant, adapter=adapter).ids == first.ids


def test_who_names_no_tenant_shares_with_nobody(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine()
    for tenant in ("a", None, None):
        assert ask_one(engine, LONG, tenant=tenant).last.cached_tokens == 0


def test_bytes_and_not_names_are_what_is_shared(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine = start_engine()
    one, other = world.adapters[0], world.adapters[1]
    ask_one(engine, LONG, adapter=one)
    renamed = ask_one(engine, LONG, adapter=AdapterRef("renamed", one.digest))
    assert renamed.last.cached_tokens == 3 * TOKENS
    replaced = ask_one(engine, LONG, adapter=AdapterRef(one.name, other.digest))
    assert replaced.last.cached_tokens == 0


def test_what_stands_before_the_prompt_makes_it_another(
    kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    """Adapters without a term of their own on a row share with the base, unless they shift it."""
    engine, plain = start_engine(context=512), start_engine(context=512, prompt_bytes=0)
    ask_one(engine, LONG)
    for kind in kinds:
        if kind.method.class_labels or "demonstrations" in kind.method.sites:
            continue
        expected = ask_one(plain, LONG, adapter=kind.adapter).ids
        for _ in range(2):
            assert ask_one(engine, LONG, adapter=kind.adapter).ids == expected, kind.id


def test_the_least_recently_used_leave_when_the_budget_is_full(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    shape = world.backbone.shape
    block = 2 * shape.layers * shape.kv_heads * TOKENS * shape.head_dim * 4
    engine = start_engine(prompt_bytes=4 * block)
    other = [token + 1 for token in LONG]
    ask_one(engine, LONG)
    ask_one(engine, other[: TOKENS + 1])
    assert ask_one(engine, LONG).last.cached_tokens == 3 * TOKENS
    ask_one(engine, other)
    assert ask_one(engine, other).last.cached_tokens == 3 * TOKENS
    assert ask_one(engine, LONG).last.cached_tokens == TOKENS


def test_what_needs_the_output_of_every_row_computes_every_row(
    world: World, start_engine: Callable[..., Engine]
) -> None:
    engine, plain = start_engine(), start_engine(prompt_bytes=0)
    ask_one(engine, LONG)
    echoed = ask_one(engine, LONG, echo=True)
    assert echoed.last.cached_tokens == 0
    told = [token.logprob for token in ask_one(plain, LONG, echo=True).tokens[0]]
    assert [token.logprob for token in echoed.tokens[0]][1:] == pytest.approx(told[1:], abs=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_the_same(start_engine: Callable[..., Engine], pooling: Any) -> None:
    engine = start_engine()
    request = EmbedRequest(inputs=[Input(ids=LONG)], pooling=pooling, tenant="a")
    first, second = (asyncio.run(engine.embed(request)) for _ in range(2))
    assert first.tokens == second.tokens == [len(LONG)]
    assert floats(first) == pytest.approx(floats(second), abs=1e-4)


def floats(reply: EmbedReply) -> list[float]:
    return torch.frombuffer(bytearray(reply.vectors[0]), dtype=torch.float32).tolist()
