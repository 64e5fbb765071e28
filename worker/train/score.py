"""Sums over what was predicted, that can be added up."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Sums over labelled tokens, or over labels."""

    loss: float = 0.0
    correct: int = 0
    tokens: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.loss + other.loss, self.correct + other.correct, self.tokens + other.tokens
        )

    @property
    def mean_loss(self) -> float:
        """Mean loss of a labelled token."""
        return self.loss / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of labelled tokens that were the likeliest."""
        return self.correct / self.tokens
