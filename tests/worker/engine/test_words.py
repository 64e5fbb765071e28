"""Adapters that bring more words than fit before a request: refused where they are looked at."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidRequest
from models.nn.methods import parse_method
from tests.worker.engine.conftest import World, put_adapter
from worker.engine.engine import Engine

CONTEXT = 256


def problems(engine: Engine, world: World, folder: Path, *, block: dict[str, Any]) -> list[str]:
    ref = put_adapter(world.store, folder, backbone=world.backbone, block=block, seed=1)
    return asyncio.run(engine.inspect(ref.digest)).problems


@pytest.mark.parametrize("words", ["a b " * CONTEXT, "a" * 100_000])
def test_a_system_prompt_leaves_room(
    start_engine: Callable[..., Engine], world: World, tmp_path: Path, words: str
) -> None:
    engine = start_engine()
    folder = tmp_path / "lora"
    assert not problems(engine, world, folder, block={"type": "lora", "rank": 2})
    path = folder / "graftwork.json"
    prompt = {"format": "chat", "system": words}
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "prompt": prompt}))
    found = asyncio.run(engine.inspect(world.store.put_tree(folder))).problems
    assert found == [
        f"The context of this engine is {CONTEXT} tokens; the adapter's `prompt` takes more."
    ]


def test_demonstrations_fit(
    start_engine: Callable[..., Engine], world: World, tmp_path: Path
) -> None:
    rows = [{"prompt": "a" * 90_000, "answer": str(number)} for number in range(2)]
    block = {"type": "in_context", "k": 2, "max_characters": 100_000, "chosen": rows}
    (problem,) = problems(start_engine(), world, tmp_path / "shows", block=block)
    assert "what the adapter shows" in problem


def test_a_demonstration_is_as_short_as_its_method_says() -> None:
    block = {"type": "in_context", "max_characters": 4, "pool": [{"prompt": "abc", "answer": "d"}]}
    assert len(parse_method(block).model_dump()["pool"]) == 1
    with pytest.raises(InvalidRequest, match="max_characters"):
        parse_method({**block, "max_characters": 3})
