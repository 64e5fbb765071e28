"""The requests that all sides are given: windows of real text as token ids, none of them twice."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serve.data import find_texts
from benchmarks.sides import JSON
from models.nn.chat import Renderer

MOST_BYTES = 4_000_000
"""Of text read from a folder: far more than is asked for."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Requests that arrive together: prompts as token ids, an adapter's name or None for each."""

    prompts: list[list[int]]
    adapters: list[str | None]
    tokens: int

    @property
    def generated(self) -> int:
        """How many tokens come of it in all."""
        return len(self.prompts) * self.tokens

    def posted(self, **changes: Any) -> JSON:
        """Return it as a side is asked, with other fields or further ones."""
        return {**asdict(self), **changes}


class Work:
    """Prompts cut from a folder of chat sets, from a place that no earlier prompt was cut from."""

    def __init__(self, folder: Path, *, renderer: Renderer, seed: int) -> None:
        """Read every JSONL file below `folder`."""
        text = "\n".join(_texts(folder))[:MOST_BYTES]
        self._ids = renderer.encode(text)
        self._next = random.Random(seed).randrange(len(self._ids))

    def prompts(self, count: int, *, length: int) -> list[list[int]]:
        """Return prompts of exactly `length` tokens."""
        return [self._window(length) for _ in range(count)]

    def order(self, adapters: Sequence[str | None], *, length: int = 64, tokens: int = 64) -> Order:
        """Return a request for each adapter's name."""
        prompts = self.prompts(len(adapters), length=length)
        return Order(prompts=prompts, adapters=list(adapters), tokens=tokens)

    def _window(self, length: int) -> list[int]:
        taken = [self._ids[(self._next + place) % len(self._ids)] for place in range(length)]
        self._next = (self._next + length) % len(self._ids)
        return taken


def in_turn(names: Sequence[str], rows: int) -> list[str | None]:
    """Return a name for each row, all of them equally often."""
    return [names[row % len(names)] for row in range(rows)]


def _texts(folder: Path) -> Iterator[str]:
    for path in find_texts(folder):
        for line in path.read_text().splitlines():
            yield from _strings(json.loads(line))


def _strings(row: Any) -> Iterator[str]:
    """Yield what people or models said in a row of a data set."""
    if not isinstance(row, dict):
        return
    for turn in row.get("messages", ()):
        if isinstance(turn, dict) and isinstance(turn.get("content"), str):
            yield turn["content"]
    yield from (
        row[key] for key in ("prompt", "completion", "text") if isinstance(row.get(key), str)
    )
