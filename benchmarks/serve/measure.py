"""Throughput of several sides on the same work, taken in turn, and the ratio of their medians."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from statistics import median

from benchmarks.record import load
from benchmarks.serve.work import Order
from benchmarks.sides import JSON, Side

WARM_TOKENS = 8


@dataclass
class Measured:
    """What one side did: seconds and throughput of every repeat, and all that it replied."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    replies: list[JSON] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median throughput, in generated tokens a second, prompts included in the time."""
        return median(self.rates)

    def figures(self) -> JSON:
        """Return what is kept of it."""
        return {
            "tokens_per_second": round(self.rate, 2),
            "repeats": [round(rate, 2) for rate in self.rates],
            "seconds": [round(seconds, 4) for seconds in self.seconds],
        }


def take_turns(
    what: str,
    sides: Mapping[str, Side],
    *,
    make: Callable[[], Order],
    repeats: int,
    patience: float = inf,
) -> tuple[dict[str, Measured], list[Order]]:
    """Give every side the same orders, one side at a time; return what came and the orders.

    Nobody reads along: whole answers are what the peers give. Before that, each side answers a
    short order that is not counted. A side that has taken longer than `patience` seconds is not
    asked again.
    """
    first = make()
    for side in sides.values():
        side.ask(first.posted(tokens=WARM_TOKENS, stream=False))
    measured = {name: Measured() for name in sides}
    orders = [make() for _ in range(repeats)]
    for number, order in enumerate(orders):
        turn = list(sides.items())
        for name, side in turn if number % 2 == 0 else reversed(turn):
            if sum(measured[name].seconds) > patience:
                continue
            reply = side.ask(order.posted(stream=False))
            measured[name].seconds.append(reply["seconds"])
            measured[name].rates.append(order.generated / reply["seconds"])
            measured[name].replies.append(reply)
    for name, side in measured.items():
        rates = " ".join(f"{rate:.1f}" for rate in side.rates)
        say(f"{what:<24} {name:<12} {side.rate:9.1f} tokens/s   ({rates})")
    return measured, orders


def figures_of(measured: Mapping[str, Measured]) -> JSON:
    """Return what is kept of a comparison."""
    return {name: side.figures() for name, side in measured.items()}


def say(line: str) -> None:
    """Print a line for whoever waits, with the load of the machine."""
    print(f"{line}   load {load()}", file=sys.stderr, flush=True)
