"""Whether the sides gave the right tokens: what may differ, and by how much.

An answer is right if each of its tokens is the likeliest one, in float32 and after the very tokens
that were given before it, or lies behind that by no more than bfloat16 explains. How much that
is, is measured on the answers of all sides: `LEEWAY` times the most by which the token that Hugging
Face's own bfloat16 network prefers lies behind. Of one answer alone it often prefers no other, so
what was measured on other orders over the same adapters counts too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serve.work import Order
from benchmarks.sides import Side

LEEWAY = 2.0
LEAST = 0.05
"""Logits: even where bfloat16 happens to prefer nothing else, this much is a tie."""


@dataclass(frozen=True)
class Verdict:
    """How the tokens of one side compare with the oracle's."""

    tokens: int
    likeliest: int
    """How many of them are the oracle's own choice."""
    worst: float
    """The most by which one lies behind, in logits."""
    allowed: float

    @property
    def right(self) -> bool:
        """Whether bfloat16 explains all that differs."""
        return self.worst <= self.allowed

    def figures(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "tokens": self.tokens,
            "likeliest": self.likeliest,
            "worst_behind": round(self.worst, 4),
            "allowed": round(self.allowed, 4),
            "right": self.right,
        }


class Judge:
    """Has an oracle read answers, order by order."""

    def __init__(self, oracle: Side) -> None:
        self._oracle = oracle
        self._noise = 0.0
        """The most by which a choice in bfloat16 lay behind so far."""

    def verdicts(
        self, order: Order, given: Mapping[str, Sequence[Sequence[int]]]
    ) -> dict[str, Verdict]:
        """Ask about the tokens that each side gave for an order.

        What several sides answered to a prompt is read once.
        """
        answers = {name: list(enumerate(map(tuple, rows))) for name, rows in given.items()}
        asked = list(dict.fromkeys(answer for side in answers.values() for answer in side))
        reply = self._oracle.ask(
            {
                "prompts": [order.prompts[row] for row, _ in asked],
                "adapters": [order.adapters[row] for row, _ in asked],
                "tokens": [tokens for _, tokens in asked],
            }
        )
        behind = dict(zip(asked, reply["behind"], strict=True))
        self._noise = max(self._noise, *reply["noise"])
        return {
            name: verdict_of([behind[each] for each in side], noise=self._noise)
            for name, side in answers.items()
        }


def verdict_of(behind: Sequence[Sequence[float]], *, noise: float) -> Verdict:
    """Return the verdict on rows of shortfalls."""
    gaps = [gap for row in behind for gap in row]
    return Verdict(
        tokens=len(gaps),
        likeliest=sum(gap <= 0 for gap in gaps),
        worst=max(gaps),
        allowed=max(LEAST, LEEWAY * noise),
    )
