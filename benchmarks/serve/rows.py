"""What our engine gives, row by row, and how long its steps take."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from models.wire import AdapterRef, GenerateDelta, GenerateEnd, GenerateError, GenerateRequest
from worker.engine.engine import Engine

NEVER_SAID = "\ue000"
"""A stop string is looked for in every step, so that each token is told as it is drawn."""


@dataclass
class Row:
    """What one request gave: when its lines came, their text, and their tokens if asked for."""

    arrivals: list[float] = field(default_factory=list)
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    count: int = 0
    """Of tokens, whether they were asked for or not."""


@dataclass
class Stopwatch:
    """Stands where the engine tells Prometheus how long a step took."""

    ends: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def observe(self, seconds: float) -> None:
        """Take the length of a step that has just ended."""
        self.ends.append(time.perf_counter())
        self.seconds.append(seconds)

    def take(self) -> dict[str, Any]:
        """Return the steps and the periods from one's end to the next one's; begin anew."""
        taken = {"steps": self.seconds, "periods": [b - a for a, b in pairwise(self.ends)]}
        self.ends, self.seconds = [], []
        return taken


async def fill(
    row: Row,
    engine: Engine,
    *,
    ids: list[int],
    digest: str | None,
    tokens: int,
    with_ids: bool = False,
    stream: bool = True,
) -> None:
    """Ask for greedy tokens and put down what comes; raises if the request fails.

    Those of a stream come one by one, however many rows there are.
    """
    request = GenerateRequest(
        prompt_ids=ids,
        stream=stream,
        adapter=None if digest is None else AdapterRef(name=digest[:12], digest=digest),
        sampling={
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
            "logprobs": with_ids,
            "stop": [NEVER_SAID] if stream else [],
        },
    )
    async for line in engine.generate(request):
        if isinstance(line, GenerateError):
            raise RuntimeError(line.message)
        if isinstance(line, GenerateDelta):
            row.arrivals.append(time.perf_counter())
            row.text += line.text
            row.tokens += [token.id for token in line.tokens]
        if isinstance(line, GenerateEnd):
            row.count = line.completion_tokens
