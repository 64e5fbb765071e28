"""By the C++ kernels an answer is the same bits, whatever was asked beside it or before."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from models.nn.kernels.native import library, reason
from models.nn.methods.ia3 import IA3
from models.nn.methods.in_context import InContext
from models.nn.shape import HEAD
from models.wire import ClassifyReply, ClassifyRequest, EmbedRequest, GenerateRequest, Input
from tests.worker.engine.conftest import Answer, TinyProblem, World, ask, order, store_kind
from tests.worker.engine.suited import BFLOAT16, suited_world
from worker.engine.engine import Engine
from worker.engine.sequence import Choice, Excerpt
from worker.engine.shared import TOKENS

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

PROMPT = [7 + (31 + place * place) % 200 for place in range(70)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return suited_world(tmp_path_factory.mktemp("company"))


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    engine = start_engine(rows=8, compute=BFLOAT16)
    assert engine.health()["step"].startswith("C++ with ")
    return engine


def written(seed: int, *, prompt: list[int] = PROMPT, tenant: str | None = None) -> GenerateRequest:
    sampling = {"temperature": 1.0, "seed": seed, "max_tokens": 40, "ignore_eos": True}
    return replace(order(prompt, logprobs=True, **sampling), tenant=tenant)


def labelled(prompt: list[int], *, tenant: str) -> ClassifyRequest:
    return ClassifyRequest(inputs=[Input(ids=prompt)] * 2, labels=["yes", "no"], tenant=tenant)


def play(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_labels_that_are_asked_beside_change_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [written(seed) for seed in range(3)]

    async def together(labels: int) -> tuple[list[Answer], list[ClassifyReply]]:
        answers = asyncio.gather(*map(ask, [engine] * len(asked), asked))
        replies = []
        for number in range(labels):
            await asyncio.sleep(0.002)
            replies.append(await engine.classify(labelled([9 + number] * 20, tenant="other")))
        return await answers, replies

    alone, _ = play(together(0))
    mixed = engine._opened.loop.scheduler  # type: ignore[union-attr]
    seen = []
    next_step = mixed.next_step
    monkeypatch.setattr(mixed, "next_step", lambda: seen.append(list(mixed.running)) or next_step())
    answers, replies = play(together(6))
    assert any({type(row) for row in rows} == {Choice, Excerpt} for rows in seen)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in alone]
    _, again = play(together(6))
    assert [reply.scores for reply in again] == [reply.scores for reply in replies]


def test_the_mean_of_an_input_is_the_same_however_its_chunks_are_cut(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine(rows=8, compute=BFLOAT16, prefill_tokens=100)
    inputs = [
        Input(ids=[7 + (number + place * place) % 200 for place in range(200 + number)])
        for number in range(12)
    ]

    async def embed(own: list[Input]) -> list[bytes]:
        return (await engine.embed(EmbedRequest(inputs=own, pooling="mean"))).vectors

    alone = [play(embed([one]))[0] for one in inputs]
    assert play(embed(inputs)) == alone


def test_labels_that_were_asked_of_a_prompt_change_nothing(engine: Engine) -> None:
    expected = play(ask(engine, written(0)))
    play(engine.classify(labelled(PROMPT, tenant="one")))
    found = play(ask(engine, written(0, tenant="one")))
    assert found.last.cached_tokens == 2 * TOKENS
    assert found.tokens == expected.tokens


def test_what_an_adapter_shows_changes_nothing_of_the_base(world: World, engine: Engine) -> None:
    problem = TinyProblem(world.renderer, world.backbone)
    shown = store_kind(world, InContext(**InContext.examples[0]), problem=problem, number=1)
    request = replace(order(PROMPT, adapter=shown.adapter), tenant="one")
    play(ask(engine, request))
    resident = engine._opened.loop.adapters.find(shown.adapter.digest)  # type: ignore[union-attr]
    assert resident is not None
    assert resident.prefix is not None
    prompt = [*resident.prefix.token_ids, *PROMPT[:10]]
    assert len(prompt) > TOKENS + 10
    expected = play(ask(engine, written(0, prompt=prompt)))
    found = play(ask(engine, written(0, prompt=prompt, tenant="one")))
    assert found.tokens == expected.tokens


def test_an_adapter_that_the_step_does_not_compute_changes_nothing_beside_it(
    world: World, engine: Engine
) -> None:
    problem = TinyProblem(world.renderer, world.backbone)
    method = IA3(target_modules=(HEAD,), feedforward_modules=(HEAD,))
    eager = store_kind(world, method, problem=problem, number=2).adapter
    asked = [written(seed) for seed in range(3)]
    others = [replace(written(seed), adapter=eager) for seed in range(2)]

    async def together(beside: list[GenerateRequest]) -> list[Answer]:
        return await asyncio.gather(*(ask(engine, request) for request in [*asked, *beside]))

    alone, mixed = play(together([])), play(together(others))
    assert [answer.tokens for answer in mixed[:3]] == [answer.tokens for answer in alone]
    assert all(len(answer.tokens) == len(alone[0].tokens) for answer in mixed)
