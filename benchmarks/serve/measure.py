"""Throughput of several sides on the same work, taken in turn, and the ratio of their medians."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from statistics import median

from benchmarks.failures import Failures
from benchmarks.record import load
from benchmarks.serve.work import Order
from benchmarks.sides import JSON, Side, SideFailed, rotated

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

    def take(self, order: Order, reply: JSON) -> None:
        """Add a repeat; `SideFailed` if a row of it has other than the tokens that were ordered."""
        counts = reply.get("counts") or [len(row) for row in reply["tokens"]]
        if counts != [order.tokens] * len(order.prompts):
            raise SideFailed(f"Rows of {counts} tokens where {order.tokens} each were ordered.")
        self.seconds.append(reply["seconds"])
        self.rates.append(order.generated / reply["seconds"])
        self.replies.append(reply)

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
    failures: Failures,
    patience: float = inf,
) -> tuple[dict[str, Measured], list[Order]]:
    """Give every side the same orders, one side at a time; return what came and the orders.

    Nobody reads along: whole answers are what the peers give. Before that, each side answers a
    short order that is not counted. A round after which a side has taken longer than `patience`
    seconds in all is the last one. A side that fails is noted, and left out.
    """
    measured = {name: Measured() for name in sides}
    orders: list[Order] = []
    first = make()
    for name, side in sides.items():
        with leaving_out(name, measured, what=what, failures=failures):
            side.ask(first.posted(tokens=WARM_TOKENS, stream=False))
    while len(orders) < repeats and all(sum(one.seconds) <= patience for one in measured.values()):
        order = make()
        for name in rotated(list(measured), len(orders)):
            with leaving_out(name, measured, what=what, failures=failures):
                measured[name].take(order, sides[name].ask(order.posted(stream=False)))
        orders.append(order)
    for name, one in measured.items():
        rates = " ".join(f"{rate:.1f}" for rate in one.rates)
        say(f"{what:<24} {name:<12} {one.rate:9.1f} tokens/s   ({rates})")
    return measured, orders


@contextmanager
def leaving_out(
    name: str, measured: dict[str, Measured], *, what: str, failures: Failures
) -> Iterator[None]:
    """Note what fails in this block, and forget the side of that name."""
    label = f"{what}: {name}"
    with failures.guard(label):
        yield
    if label in failures:
        measured.pop(name, None)


def figures_of(measured: Mapping[str, Measured]) -> JSON:
    """Return what is kept of a comparison."""
    return {name: side.figures() for name, side in measured.items()}


def say(line: str) -> None:
    """Print a line for whoever waits, with the load of the machine."""
    print(f"{line}   load {load()}", file=sys.stderr, flush=True)
