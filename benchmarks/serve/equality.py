"""Whether the sides gave the right tokens: what may differ, and by how much.

A side is right if each of its tokens is the likeliest one, in float32 and after the very tokens
that were given before it, or lies behind that by no more than bfloat16 explains, and if no more of
them lie behind. How much and how many that is, is measured on the answers of all sides: `LEEWAY`
times what Hugging Face's own bfloat16 network, reading the same tokens, prefers to the likeliest.
Of one answer alone it often prefers no other, so what was measured on other orders over the same
adapters counts too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serve.work import Order
from benchmarks.sides import Side

LEEWAY = 2.0
LEAST = 0.05
"""Logits: even where bfloat16 happens to prefer nothing else, this much is a tie."""
LEAST_OTHERS = 3
"""Tokens: so many more may be others than the likeliest, for the sake of short answers."""


@dataclass
class Noise:
    """What a network in bfloat16 did to the tokens that were read so far."""

    tokens: int = 0
    others: int = 0
    """How many of its choices were not the likeliest."""
    worst: float = 0.0
    """The most by which one of them lay behind, in logits."""

    def add(self, behind: Sequence[Sequence[float]]) -> None:
        """Take how far its choices lie behind, row by row."""
        gaps = [gap for row in behind for gap in row]
        self.tokens += len(gaps)
        self.others += sum(gap > 0 for gap in gaps)
        self.worst = max([self.worst, *gaps])


@dataclass(frozen=True)
class Verdict:
    """How the tokens of one side compare with the oracle's."""

    tokens: int
    likeliest: int
    """How many of them are the oracle's own choice."""
    worst: float
    """The most by which one lies behind, in logits."""
    allowed: float
    allowed_others: int
    """How many tokens may be others than the likeliest."""

    @property
    def right(self) -> bool:
        """Whether bfloat16 explains all that differs."""
        few = self.tokens - self.likeliest <= self.allowed_others
        return few and self.worst <= self.allowed

    def figures(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "tokens": self.tokens,
            "likeliest": self.likeliest,
            "worst_behind": round(self.worst, 4),
            "allowed": round(self.allowed, 4),
            "allowed_others": self.allowed_others,
            "right": self.right,
        }


class Judge:
    """Has an oracle read answers, order by order."""

    def __init__(self, oracle: Side) -> None:
        self._oracle = oracle
        self._noise = Noise()

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
        self._noise.add(reply["noise"])
        return {
            name: verdict_of([behind[each] for each in side], noise=self._noise)
            for name, side in answers.items()
        }


def verdict_of(behind: Sequence[Sequence[float]], *, noise: Noise) -> Verdict:
    """Return the verdict on rows of shortfalls."""
    gaps = [gap for row in behind for gap in row]
    others = LEEWAY * noise.others * len(gaps) / max(noise.tokens, 1)
    return Verdict(
        tokens=len(gaps),
        likeliest=sum(gap <= 0 for gap in gaps),
        worst=max(gaps),
        allowed=max(LEAST, LEEWAY * noise.worst),
        allowed_others=LEAST_OTHERS + round(others),
    )
