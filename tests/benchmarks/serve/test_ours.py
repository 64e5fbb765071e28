"""Our side of the serving benchmark, for real and small: an engine, its swaps, its judge."""

from functools import partial

import pytest
import torch

from benchmarks.failures import Failures
from benchmarks.serve import swaps, versus
from benchmarks.serve.adapters import make_kinds, make_loras
from benchmarks.serve.equality import Judge, Noise, verdict_of
from benchmarks.serve.peers import hf_oracle, hf_peft
from benchmarks.serve.steps import BASE, time_batches
from benchmarks.serve.work import Work, in_turn
from benchmarks.serve.world import World, ready, start_engine, start_peer
from benchmarks.sides import Side, SideFailed
from core.bases import write_manifest
from core.settings import EngineSettings, ServingSettings, Settings
from core.store import Store
from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from tests.tiny import make_tiny_base

CONTEXT = 16384
"""So long that rows still decode when a phase ends late on a loaded machine."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("serve")
    compute = ServingSettings(dtype="float32", threads=1)
    engine = EngineSettings(rows=4, context=CONTEXT, compute=compute)
    settings = Settings(data_dir=folder / "data", base="tiny", engine=engine)
    dimensions = {"initializer_range": 0.15, "max_position_embeddings": CONTEXT}
    make_tiny_base(settings.base_folder, seed=1, **dimensions)
    renderer = Renderer.load(settings.base_folder)
    write_manifest(settings.base_folder, id="tiny", shape={}, renderer_digest=renderer.digest)
    backbone = Backbone.load(settings.base_folder, dtype=torch.float32)
    (folder / "texts.jsonl").write_text('{"prompt": "Tell me of kettles.", "completion": "No."}\n')
    store = Store(settings.store)
    adapters = folder / "adapters"
    return World(
        folder=folder,
        settings=settings,
        backbone=backbone,
        store=store,
        work=Work(folder, renderer=renderer, seed=3),
        loras=make_loras(2, rank=4, backbone=backbone, folder=adapters, store=store),
        kinds=make_kinds(backbone=backbone, folder=adapters, store=store),
    )


def test_two_sides_give_the_same_tokens_and_the_oracle_agrees(world: World) -> None:
    failures = Failures()
    with (
        start_engine(world, adapters=world.loras) as ours,
        start_peer(world, hf_peft.PEER, label="peft", adapters=world.folders) as peft,
        versus.start_oracle(world) as oracle,
    ):
        ready(ours, peft, oracle)
        found = versus.compare(
            "mixed",
            {versus.OURS: ours, "peft": peft},
            judge=Judge(oracle),
            make=lambda: world.work.order(in_turn(world.names, 4), length=8, tokens=6),
            repeats=2,
            failures=failures,
        )
    assert found["wrong"] == []
    assert found["texts_as_when_timed"] == {versus.OURS: "8 of 8"}
    assert not failures
    assert found["tokens"][versus.OURS]["tokens"] == 24
    assert versus.ratio(found, "peft") > 0


def test_an_answer_that_is_another_when_asked_again_is_wrong() -> None:
    right = verdict_of([[0.0]], noise=Noise())
    behind = verdict_of([[1.0]], noise=Noise())
    verdicts = {versus.OURS: right, "vllm": behind, versus.INT8: behind}
    assert versus.wrong_ones(verdicts, []) == ["vllm"]
    assert versus.wrong_ones(verdicts, [versus.OURS]) == [versus.OURS, "vllm"]


def test_a_side_that_cannot_start_is_left_out(world: World) -> None:
    def gone() -> Side:
        raise SideFailed("no such peer")

    failures = Failures()
    part = versus.Part(
        name="part",
        starts={versus.OURS: partial(start_engine, world, adapters=[]), "gone": gone},
        contests=[
            versus.Contest(
                name="base",
                sides=[versus.OURS, "gone"],
                make=lambda: world.work.order([None], length=8, tokens=4),
            )
        ],
    )
    found = versus.against_peers(world, part, failures=failures, repeats=1)
    assert list(found["base"]["sides"]) == [versus.OURS]
    assert failures == {"part: gone": "SideFailed: no such peer"}


def test_the_oracle_finds_a_wrong_token(world: World) -> None:
    order = world.work.order([world.names[0]], length=8, tokens=4)
    with start_engine(world, adapters=world.loras) as ours:
        ready(ours)
        right = ours.ask(order.posted(with_ids=True))["tokens"]
    with start_peer(world, hf_oracle.PEER, label="oracle", adapters=world.folders) as oracle:
        ready(oracle)
        wrong = [[(token + 1) % 250 for token in row] for row in right]
        behind = [oracle.ask(order.posted(tokens=tokens))["behind"] for tokens in (right, wrong)]
    assert max(behind[0][0]) < 1e-3 < max(behind[1][0])


def test_steps_of_all_kinds_are_timed(world: World) -> None:
    names = [kind.name for kind in world.kinds]
    with start_engine(world, adapters=world.kinds) as engine:
        ready(engine)
        found = time_batches(
            world, engine, {"base": BASE, "kinds": names}, rows=4, repeats=1, length=6, tokens=5
        )
    assert found["base"]["median"] > 0 < found["kinds"]["median"]


def test_swaps_are_timed_and_answers_are_right(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swaps, "PHASE_SECONDS", 0.02)
    monkeypatch.setattr(swaps, "PHASES", 2)
    monkeypatch.setattr(swaps, "OTHERS", 2)
    monkeypatch.setattr(swaps, "ANSWER", CONTEXT - 200)
    found = swaps.over_one_engine(world, repeats=1)
    assert found["first"]["swap_over_copy"] > 0
    assert found["others"]["wrong"] == []
    assert found["others"]["swaps"] > 0
    assert found["others"]["swap_gap"] > 0
