"""Adapter versions for the engine's tests, and what it says of those in memory."""

import time
from typing import Any

from models.nn.artifact import load_artifact
from models.nn.terms import Terms
from models.wire import AdapterRef
from tests.worker.engine.conftest import World, ask_all, order, put_adapter
from worker.engine.engine import Engine

PROMPT = list(range(10, 30))


def size_of(world: World, adapter: AdapterRef) -> int:
    artifact = load_artifact(world.settings.data_folder / adapter.name, shape=world.backbone.shape)
    return Terms.of(artifact.method, artifact.tensors, world.backbone.base).bytes


def resident(engine: Engine) -> list[str]:
    return [entry["digest"] for entry in engine.health()["resident"]]


def ids(engine: Engine, adapter: AdapterRef | None) -> list[int]:
    return ask_all(engine, [order(PROMPT, adapter=adapter, logprobs=True)])[0].ids


def spoilt(world: World, name: str, *, seed: int = 1, rank: int = 2, **options: Any) -> AdapterRef:
    return put_adapter(
        world.store,
        world.settings.data_folder / f"{name}-{time.monotonic_ns()}",
        backbone=world.backbone,
        block={"type": "lora", "rank": rank},
        seed=seed,
        **options,
    )
