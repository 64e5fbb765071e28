"""What labels cost to be put to the model: work in the thread that others wait for."""

import asyncio
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from models.nn.marked_text import MarkedText
from models.wire import AdapterRef, ClassifyRequest, Input
from tests.worker.engine.conftest import World, ask, order, put_adapter, until
from worker.engine.engine import Engine
from worker.engine.loop import OPENING_SECONDS
from worker.engine.runner import Runner

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
    engine, pieces, read = start_engine(), MarkedText.tokens, list[str]()

    def noted(self: MarkedText, text: str, mark: str) -> Any:
        read.append(text)
        return pieces(self, text, mark)

    monkeypatch.setattr(MarkedText, "tokens", noted)
    asked = ClassifyRequest(inputs=[Input(text="z" * 50)], labels=LABELS, adapter=completing)
    asyncio.run(engine.classify(asked))
    assert sum("zz" in text for text in read) == 2 + len(LABELS)


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_rows_have_steps_while_long_texts_are_put_to_the_model(
    start_engine: Callable[..., Engine],
    completing: AdapterRef,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    engine, start, run, seen = start_engine(), MarkedText.start, Runner.run, list[str]()

    def start_slowly(self: MarkedText, text: str, *given: Any, **options: Any) -> Any:
        if "zz" in text:
            seen.append("text")
            time.sleep(2 * OPENING_SECONDS)
        return start(self, text, *given, **options)

    def noted(self: Runner, *given: Any, **options: Any) -> Any:
        seen.append("step")
        return run(self, *given, **options)

    async def play() -> None:
        writing = asyncio.create_task(ask(engine, order("a", max_tokens=240, ignore_eos=True)))
        await until(lambda: engine.health()["rows"] == 1)
        monkeypatch.setattr(MarkedText, "start", start_slowly)
        monkeypatch.setattr(Runner, "run", noted)
        adapter = completing if form == "completion" else None
        inputs = [Input(text="z" * 50)] * 4
        await engine.classify(ClassifyRequest(inputs=inputs, labels=LABELS, adapter=adapter))
        await writing

    asyncio.run(play())
    runs = [len(list(same)) for what, same in groupby(seen) if what == "text"]
    assert sum(runs) >= 12
    assert max(runs) <= 2, runs
