"""Adapter versions for the engine's tests, and what it says of those in memory."""

import time
from typing import Any

from models.nn.artifact import load_artifact
from models.nn.terms import Terms
from models.wire import AdapterRef, GenerateRequest
from tests.worker.engine.conftest import World, ask_all, order, put_adapter
from worker.engine.engine import Engine

PROMPT = list(range(10, 30))


def size_of(world: World, adapter: AdapterRef) -> int:
    artifact = load_artifact(world.settings.data_folder / adapter.name, shape=world.backbone.shape)
    return Terms.of(artifact.method, artifact.tensors, world.backbone.base).bytes


def resident(engine: Engine) -> list[str]:
    return [entry["digest"] for entry in engine.health()["resident"]]


def order_ids(adapter: AdapterRef | None) -> GenerateRequest:
    """Ask for eight ids, also of a network that would end its answer at once."""
    return order(PROMPT, adapter=adapter, logprobs=True, ignore_eos=True)


def ids(engine: Engine, adapter: AdapterRef | None) -> list[int]:
    return ask_all(engine, [order_ids(adapter)])[0].ids


def spoilt(world: World, name: str, *, seed: int = 1, rank: int = 2, **options: Any) -> AdapterRef:
    return put_adapter(
        world.store,
        world.settings.data_folder / f"{name}-{time.monotonic_ns()}",
        backbone=world.backbone,
        block={"type": "lora", "rank": rank},
        seed=seed,
        **options,
    )
