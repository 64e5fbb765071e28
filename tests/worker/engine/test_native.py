"""An engine whose steps are computed by the C++ kernels where they can be."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch

from core.settings import ServingSettings
from models.nn.backbone import Backbone, pick_dtype
from models.nn.forward import Part, forward
from models.nn.head import pool
from models.nn.kernels.native import library, reason
from models.nn.kernels.native.adapter import prepare
from models.nn.methods import METHODS
from models.nn.terms import Terms
from models.wire import EmbedReply, EmbedRequest, Input
from tests.worker.engine.conftest import (
    Answer,
    Kind,
    Taken,
    TinyProblem,
    World,
    ask,
    ask_all,
    order,
    store_kind,
)
from tests.worker.engine.suited import BFLOAT16, suited_world
from worker.engine import native
from worker.engine.admission import admit
from worker.engine.blocks import Blocks
from worker.engine.engine import Engine

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return suited_world(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def kinds(world: World) -> list[Kind]:
    problem = TinyProblem(world.renderer, world.backbone)
    examples = [(cls, example) for cls in METHODS.values() for example in cls.examples]
    found = [
        store_kind(world, cls(**example), problem=problem, number=number)
        for number, (cls, example) in enumerate(examples)
    ]
    return [kind for kind in found if kind.method.class_labels is None]


def test_rows_of_all_kinds_are_each_alone_to_the_bit(
    kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    """Also in bfloat16, whatever the company, the chunks and the slots; whole weights too."""
    orders = [
        order(
            [7 + (place * 31 + i * i) % 200 for i in range(5 + place)],
            adapter=adapter,
            max_tokens=4 + place % 5,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=2,
        )
        for place, adapter in enumerate([None, *(kind.adapter for kind in kinds)])
    ]
    one = start_engine(rows=1, compute=BFLOAT16)
    assert one.health()["step"].startswith("C++ with ")
    alone = [ask_all(one, [request])[0] for request in orders]
    for limits in ({"rows": 40}, {"rows": 5, "prefill_tokens": 9}):
        engine = start_engine(compute=BFLOAT16, **limits)
        for expected, got in zip(alone, ask_all(engine, orders, gap=0.002), strict=True):
            assert got.tokens == expected.tokens


def test_whole_weights_that_have_no_room_for_a_copy_are_computed_by_torch(
    kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    whole = next(kind.adapter for kind in kinds if kind.method.kind == "full")
    request = order(range(30, 70), adapter=whole, max_tokens=12, ignore_eos=True, logprobs=True)
    answers, taken = [], []
    for changes in ({}, {"adapter_bytes": 300_000}):
        engine = start_engine(compute=BFLOAT16, **changes)
        answers.append(ask_all(engine, [request])[0])
        resident = engine._opened.loop.adapters.find(whole.digest)  # type: ignore[union-attr]
        assert resident is not None
        assert resident.footing.eager == bool(changes)
        taken.append(resident.bytes)
    assert taken[1] < 300_000 < taken[0]
    check_near(answers[1], answers[0])  # both ways round to bfloat16, in another order


def check_near(found: Answer, expected: Answer) -> None:
    """Compare the tokens as long as both answers are the same, and the first that is not."""
    for token, other in zip(found.tokens[0], expected.tokens[0], strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=0.3)
        if token.id != other.id:
            break


@pytest.mark.usefixtures("told_at_once")
def test_whole_answers_of_kinds_in_one_batch_are_the_streamed_ones(
    kinds: list[Kind], start_engine: Callable[..., Engine], taken: Taken
) -> None:
    """Many tokens of theirs are computed in one call, where a stream has a call for each."""
    engine = start_engine(rows=40, compute=BFLOAT16, drafts=False)
    requests = [
        order(range(9, 15 + place), adapter=kind.adapter, max_tokens=24 + place, ignore_eos=True)
        for place, kind in enumerate(kinds)
    ]
    streamed = ask_all(engine, requests)
    resident = engine._opened.loop.adapters.find  # type: ignore[union-attr]
    footings = [resident(kind.adapter.digest).footing for kind in kinds]  # type: ignore[union-attr]
    together = [place for place, one in enumerate(footings) if not (one.group or one.eager)]
    assert len(together) > 8
    taken.clear()
    whole = [msgspec.structs.replace(requests[place], stream=False) for place in together]
    for place, told in zip(together, ask_all(engine, whole), strict=True):
        expected = streamed[place]
        assert told.texts == expected.texts
        assert (told.reasons, told.last) == (expected.reasons, expected.last)
    assert max(steps for _, steps in taken) > 10


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooled_states_are_those_of_the_network(
    world: World, start_engine: Callable[..., Engine], pooling: Literal["last", "mean"]
) -> None:
    """Whole and in chunks, beside a row that decodes."""
    prompts = [[7 + (place * 31 + i * i) % 200 for i in range(40 + place)] for place in range(3)]
    asked = EmbedRequest(inputs=[Input(ids=ids) for ids in prompts], pooling=pooling)
    found = []
    for limits in ({"rows": 8}, {"rows": 4, "prefill_tokens": 9}):
        engine = start_engine(compute=BFLOAT16, **limits)
        assert engine.health()["step"].startswith("C++ with ")

        async def play(engine: Engine = engine) -> EmbedReply:
            writing = asyncio.create_task(
                ask(engine, order([5, 6, 7], max_tokens=40, ignore_eos=True))
            )
            reply = await engine.embed(asked)
            await writing
            return reply

        found.append([torch.tensor(np.frombuffer(v, "<f4")) for v in asyncio.run(play()).vectors])
    for ids, whole, chunked in zip(prompts, *found, strict=True):
        states = forward(world.backbone, [Part(torch.tensor(ids), (len(ids),))])
        expected = pool(states.hidden_td, [len(ids)], pooling=pooling)[0].float()
        torch.testing.assert_close(whole, expected, atol=0.02 * float(expected.norm()), rtol=0)
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compute", [BFLOAT16, ServingSettings(dtype="float32")])
def test_rows_move_together_only_where_slots_are_gone_through(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, compute: ServingSettings
) -> None:
    """Of eight rows all but the last end soon; torch then computes one slot instead of eight."""
    moved = []
    move = Blocks.move

    def noted(self: Blocks, source: int, target: int, **how: int) -> None:
        moved.append((source, target))
        move(self, source, target, **how)

    monkeypatch.setattr(Blocks, "move", noted)
    engine = start_engine(rows=8, compute=compute, drafts=False)
    orders = [
        order([9, 8, 7 + i], max_tokens=20 if i == 7 else 3, ignore_eos=True) for i in range(8)
    ]
    last = ask_all(engine, orders)[-1]
    by_torch = compute is not BFLOAT16
    assert engine.health()["step"].startswith("C++") != by_torch
    assert bool(moved) == by_torch
    assert last.texts == ask_all(engine, orders[-1:])[0].texts


def test_steps_of_both_ways_take_turns(
    start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is the same, so tokens are those of either way alone, but for near ties."""
    request = order(
        list(range(30, 70)), max_tokens=24, ignore_eos=True, logprobs=True, top_logprobs=2
    )
    engine = start_engine(rows=2, compute=BFLOAT16, drafts=False)
    native = engine._opened.loop._runner._native  # type: ignore[union-attr]
    expected = ask_all(engine, [request])[0]
    compute, turns = native.run, iter(range(1000))
    monkeypatch.setattr(
        native, "run", lambda step, **how: compute(step, **how) if next(turns) % 2 else None
    )
    found = ask_all(engine, [request])[0]
    assert next(turns) >= 24
    for before, after in zip(expected.tokens[0], found.tokens[0], strict=True):
        if before.top[0].logprob - before.top[1].logprob < 0.1:
            break
        assert after.id == before.id
        assert after.logprob == pytest.approx(before.logprob, abs=0.1)
    else:
        assert found.ids == expected.ids


def test_a_base_that_it_computes_wrongly_is_not_served_by_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(world.settings.base_folder, dtype=torch.bfloat16)
    blocks = Blocks(
        backbone.shape, rows=2, context=64, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    fine, form = admit(backbone, blocks)
    assert fine is not None
    assert form == f"C++ with {fine.form}"
    assert not any(cache.any() for cache in (*blocks.keys, *blocks.values))
    monkeypatch.setattr(
        "models.nn.kernels.native.model._angles",
        lambda backbone, positions: (torch.ones(positions, 16), torch.zeros(positions, 16)),
    )
    wrong, form = admit(backbone, blocks)
    assert wrong is None
    assert "from the network" in form


def test_other_dtypes_are_served_as_before(world: World) -> None:
    backbone = Backbone.load(world.settings.base_folder, dtype=torch.float32)
    blocks = Blocks(
        backbone.shape, rows=2, context=64, dtype=torch.float32, device=torch.device("cpu")
    )
    native, form = admit(backbone, blocks)
    assert native is None
    assert "float32" in form


def test_it_is_the_first_choice_whatever_the_network_computes_in(
    kinds: list[Kind], start_engine: Callable[..., Engine]
) -> None:
    """Also in float32, over a cache in bfloat16 that whole weights then share, or from 8 bits."""
    whole = next(kind for kind in kinds if kind.method.kind == "full")
    base, adapted = (
        order(list(range(30, 70)), adapter=adapter, max_tokens=12, ignore_eos=True, logprobs=True)
        for adapter in (None, whole.adapter)
    )
    told = start_engine(compute=BFLOAT16)
    chosen = start_engine(compute=ServingSettings())
    packed = start_engine(compute=ServingSettings(), quantization="int8")
    for engine in (chosen, packed):
        assert engine.health()["step"].startswith("C++ with ")
        assert [len(answer.ids) for answer in ask_all(engine, [base, adapted])] == [12, 12]
    found, expected = (ask_all(engine, [base])[0] for engine in (chosen, told))
    if pick_dtype() is torch.bfloat16:
        assert found.ids == expected.ids
    else:  # the weights that C++ rounds were not rounded to bfloat16 before
        check_near(found, expected)


def test_adapters_are_laid_out_beside_the_steps(
    world: World,
    kinds: list[Kind],
    start_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []

    def noted(terms: Terms, *rest: Any) -> Any:
        threads.append(threading.current_thread().name)
        return prepare(terms, *rest)

    monkeypatch.setattr(native, "prepare", noted)
    lora = next(kind for kind in kinds if kind.method.kind == "lora")
    engine = start_engine(compute=BFLOAT16)
    for _ in range(2):
        assert ask_all(engine, [order(range(10, 20), adapter=lora.adapter)])[0].reasons
    assert len(threads) == 1
    assert threads[0].startswith("fetch")
    runner = engine._opened.loop._runner._native  # type: ignore[union-attr]
    assert runner is not None
    assert runner._adapters.keys() == {lora.adapter.digest}
    (laid_out,) = runner._adapters.values()
    (entry,) = engine.health()["resident"]
    assert laid_out is not None
    assert entry["bytes"] >= laid_out.arena.bytes > 0  # the budget counts both
    engine.drop(lora.adapter.digest)
    assert ask_all(engine, [order(range(10, 20))])[0].reasons
    assert not runner._adapters


def test_an_adapter_that_is_forgotten_while_it_is_looked_for_is_laid_out_again(
    kinds: list[Kind], start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper lays one out while the torch thread, whose step has failed, forgets all."""

    class Forgetful(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

        def get(self, key: str, default: Any = None) -> Any:
            found = super().get(key, default)
            self.clear()
            return found

    lora = next(kind for kind in kinds if kind.method.kind == "lora").adapter
    engine = start_engine(compute=BFLOAT16)
    assert ask_all(engine, [order(range(10, 20), adapter=lora)])[0].reasons
    loop = engine._opened.loop  # type: ignore[union-attr]
    runner, resident = loop._runner._native, loop.adapters.find(lora.digest)
    assert runner is not None
    assert resident is not None
    laid_out = runner._adapters[lora.digest]
    monkeypatch.setattr(runner, "_adapters", Forgetful(runner._adapters))
    assert runner.prepare(lora.digest, resident.terms) is laid_out
    again = runner.prepare(lora.digest, resident.terms)
    assert again is not None
    assert again is not laid_out
