"""Adapters that put more words before a request than fit: refused before these are tokenised."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidRequest
from models.nn.methods import parse_method
from models.wire import AdapterRef, ClassifyRequest, Input
from tests.worker.engine.conftest import World, put_adapter
from worker.engine.engine import Engine

CONTEXT = 256


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine()


def score(engine: Engine, adapter: AdapterRef, asked: Input) -> list[list[float]]:
    order = ClassifyRequest(inputs=[asked], adapter=adapter, labels=["a", "b"])
    return asyncio.run(engine.classify(order)).scores


@pytest.mark.parametrize("words", ["a b " * CONTEXT, "a" * 100_000])
def test_a_system_prompt_leaves_a_bare_text_room(
    engine: Engine, world: World, tmp_path: Path, words: str
) -> None:
    folder, block = tmp_path / "lora", {"type": "lora", "rank": 2}
    put_adapter(world.store, folder, backbone=world.backbone, block=block, seed=1)
    path = folder / "graftwork.json"
    prompt = {"format": "chat", "system": words, "overflows": None}
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "prompt": prompt}))
    adapter = AdapterRef("wordy", world.store.put_tree(folder))
    with pytest.raises(InvalidRequest, match="takes more") as refused:
        score(engine, adapter, Input(text="c"))
    assert refused.value.code == "context_length_exceeded"
    assert score(engine, adapter, Input(messages=[{"role": "user", "content": "c"}]))


@pytest.mark.parametrize("letters", [CONTEXT, 90_000])
def test_demonstrations_leave_room(
    engine: Engine, world: World, tmp_path: Path, letters: int
) -> None:
    rows = [{"prompt": "a" * letters, "answer": str(number)} for number in range(2)]
    shared: dict[str, Any] = {"type": "in_context", "k": 2, "max_characters": 100_000}
    chosen = {"chosen": rows}, {"selection": "bm25", "scope": "per_request", "pool": rows}
    fixed, each = (
        put_adapter(
            world.store,
            tmp_path / str(number),
            backbone=world.backbone,
            block=shared | block,
            seed=1,
        )
        for number, block in enumerate(chosen)
    )
    (problem,) = asyncio.run(engine.inspect(fixed.digest)).problems
    assert "takes more" in problem
    for adapter in (fixed, each):
        with pytest.raises(InvalidRequest) as refused:
            score(engine, adapter, Input(text="a c"))
        assert refused.value.code == "context_length_exceeded"


def test_a_demonstration_is_as_short_as_its_method_says() -> None:
    block = {"type": "in_context", "max_characters": 4, "pool": [{"prompt": "abc", "answer": "d"}]}
    assert len(parse_method(block).model_dump()["pool"]) == 1
    with pytest.raises(InvalidRequest, match="max_characters"):
        parse_method({**block, "max_characters": 3})
