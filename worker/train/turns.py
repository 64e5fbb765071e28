"""How jobs of one trainer take turns: each is a generator that stops where it wants to compute.

It yields what it wants, and is resumed when it is that job's turn: with the score of a
`MicroBatch` (`tasks.py`), or with nothing for a `Turn`, whose work it then does itself. A pause, a
stop and the loss of a shared step are thrown into it there.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

LEAD = 512
"""Tokens that a job may have had more than another before it waits."""

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """The wish to compute something alone, of about so many tokens."""

    tokens: int


Alone: TypeAlias = Generator[Turn, None, T]
"""Work that shares nothing."""


class Interrupted(Exception):
    """Somebody asked for a pause or a stop: save and end."""


class Dropped(Exception):
    """Nobody waits for the result any more: end without a word."""


class StepLost(Exception):
    """What was computed together failed, by whose fault is not known: take the step again."""


def do_alone(work: Alone[T], *, check: Callable[[], None] = lambda: None) -> T:
    """Do work that shares nothing from start to end; `check` may interrupt it at each turn."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        check()
