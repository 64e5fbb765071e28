"""What labels cost to be put to the model: work in the thread that others wait for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.nn.chat import Renderer
from models.wire import AdapterRef, ClassifyRequest, Input
from tests.worker.engine.conftest import World, put_adapter
from worker.engine.engine import Engine

LABELS = [f"label {number}" for number in range(12)]


@pytest.fixture
def completing(world: World, tmp_path: Path) -> AdapterRef:
    """An adapter that takes texts as they are."""
    return put_adapter(
        world.store,
        tmp_path / "completing",
        backbone=world.backbone,
        block={"type": "lora", "rank": 2},
        seed=5,
        provenance={"prompt": {"format": "completion", "system": None, "lead": " "}},
    )


def test_a_text_is_tokenised_once_for_each_label(
    start_engine: Callable[..., Engine], completing: AdapterRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, pieces, read = start_engine(), Renderer._pieces, list[str]()

    def noted(self: Renderer, text: str, mark: str) -> Any:
        read.append(text)
        return pieces(self, text, mark)

    monkeypatch.setattr(Renderer, "_pieces", noted)
    asked = ClassifyRequest(inputs=[Input(text="z" * 50)], labels=LABELS, adapter=completing)
    asyncio.run(engine.classify(asked))
    assert sum("zz" in text for text in read) == 2 + len(LABELS)
