"""Our side: the real engine in a process of its own, driven by what its HTTP face calls too.

It answers the orders that the peers answer, and some of its own: `do` says which.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.serve.gaps import BUSY, QUIET, Phase, gaps_by_phase
from benchmarks.serve.peers.peer import Answer, answer_orders
from benchmarks.serve.rows import Row, Stopwatch, fill
from benchmarks.serve.slots import copy_seconds
from benchmarks.sides import JSON
from core.settings import Settings
from worker.engine.engine import Engine

POLL_SECONDS = 0.001


class Driver:
    """Asks one engine."""

    def __init__(self, engine: Engine, *, digests: dict[str, str], stopwatch: Stopwatch) -> None:
        self._engine = engine
        self._digests = digests
        self._stopwatch = stopwatch

    async def answer(self, order: JSON) -> JSON:
        """Do what an order says."""
        doing: dict[str, Callable[[JSON], Awaitable[JSON]]] = {
            "generate": self._generate,
            "first": self._first,
            "churn": self._churn,
        }
        return await doing[order.get("do", "generate")](order)

    async def _generate(self, order: JSON) -> JSON:
        self._stopwatch.take()
        rows = [Row() for _ in order["prompts"]]
        began = time.perf_counter()
        await asyncio.gather(*self._filling(rows, order))
        return {
            "seconds": time.perf_counter() - began,
            "tokens": [row.tokens for row in rows],
            "counts": [row.count for row in rows],
            "texts": [row.text for row in rows],
            **self._stopwatch.take(),
        }

    def _filling(self, rows: list[Row], order: JSON) -> list[Awaitable[None]]:
        return [
            fill(
                row,
                self._engine,
                ids=ids,
                digest=self._digests[name] if name else None,
                tokens=order["tokens"],
                with_ids=order.get("with_ids", False),
                stream=order.get("stream", True),
            )
            for row, ids, name in zip(rows, order["prompts"], order["adapters"], strict=True)
        ]

    async def _first(self, order: JSON) -> JSON:
        """Time an adapter's bare copy, then its first token cold, then warm; drop it."""
        copied = copy_seconds(Path(order["file"]))
        took = {}
        for state in ("cold", "warm"):
            row, began = Row(), time.perf_counter()
            await fill(row, self._engine, ids=order["prompt"], digest=order["digest"], tokens=1)
            took[state] = row.arrivals[0] - began
        await self._drop(order["digest"])
        return {"copy": copied, "text": row.text, **took}

    async def _churn(self, order: JSON) -> JSON:
        """Let rows decode through quiet and busy phases in turn; return the gaps of each.

        A busy phase loads, replaces and unloads other adapters without a pause.
        """
        rows = [Row() for _ in order["prompts"]]
        tasks = [asyncio.ensure_future(filling) for filling in self._filling(rows, order)]
        await asyncio.sleep(order["seconds"])
        phases: list[Phase] = []
        wrong = swaps = 0
        while len(phases) < order["phases"] and not any(task.done() for task in tasks):
            began = time.perf_counter()
            if len(phases) % 2 == 0:
                await asyncio.sleep(order["seconds"])
                phases.append(Phase(QUIET, began, time.perf_counter()))
                continue
            while time.perf_counter() - began < order["seconds"]:
                wrong += await self._replace(order["swapped"], probe=order["probe"])
                swaps += len(order["swapped"])
            phases.append(Phase(BUSY, began, time.perf_counter()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gaps = gaps_by_phase([row.arrivals for row in rows], phases)
        return {"gaps": gaps, "phases": len(phases), "swaps": swaps, "wrong": wrong}

    async def _replace(self, texts: dict[str, str], *, probe: list[int]) -> int:
        """Load each version in place of the one before, unload the last; return wrong answers."""
        wrong, before = 0, ""
        for digest, expected in texts.items():
            row = Row()
            await fill(row, self._engine, ids=probe, digest=digest, tokens=1)
            wrong += row.text != expected
            if before:
                await self._drop(before)
            before = digest
        await self._drop(before)
        return wrong

    async def _drop(self, digest: str) -> None:
        """Free an adapter and wait until it is gone."""
        self._engine.drop(digest)
        while self._holds(digest):  # noqa: ASYNC110 - a health report sets no event
            await asyncio.sleep(POLL_SECONDS)

    def _holds(self, digest: str) -> bool:
        return any(held["digest"] == digest for held in self._engine.health()["resident"])


def load(spec: JSON) -> Answer:
    """Start an engine with these settings and wait until it serves."""
    loop = asyncio.new_event_loop()
    engine = Engine(Settings.model_validate(spec["settings"]))
    stopwatch = Stopwatch()
    engine.metrics.step_seconds = stopwatch  # type: ignore[assignment]  # it observes as the histogram does
    engine.start()
    loop.run_until_complete(_until_ready(engine))
    driver = Driver(engine, digests=spec["digests"], stopwatch=stopwatch)
    return lambda order: loop.run_until_complete(driver.answer(order))


async def _until_ready(engine: Engine) -> None:
    while not engine.health()["ready"]:  # noqa: ASYNC110 - a health report sets no event
        await asyncio.sleep(POLL_SECONDS)


if __name__ == "__main__":
    answer_orders(load)
