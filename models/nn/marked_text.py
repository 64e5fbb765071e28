"""Text to token ids with no control token in it, which a tokenizer would see in a user's own words.

A mark, a character that the text has not, is put into every control string of it (`defuse`). What
lies between marks is tokenised piece by piece.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

CHARACTERS = 6
"""More than a token of nearly any text has on average: of longer ones the start is read first."""


class Tokens(NamedTuple):
    """Ids, and of each the character of the text at which it begins."""

    ids: list[int]
    starts: list[int]


class MarkedText:
    """Tokenises what was marked, or of far too long a text its start."""

    def __init__(self, tokenizer: Any, *, control: Sequence[str]) -> None:
        """Wrap a tokenizer of the `tokenizers` library; `control` are its control strings."""
        self._tokenizer = tokenizer
        self._control = re.compile(f"(?={'|'.join(map(re.escape, control))})") if control else None

    def defuse(self, text: str, mark: str) -> str:
        """Put the mark behind the first character of every control string."""
        if self._control is None:
            return text
        cuts = [match.start() + 1 for match in self._control.finditer(text)]
        return mark.join(text[i:j] for i, j in pairwise([0, *cuts, len(text)]))

    def tokens(self, text: str, mark: str) -> Tokens:
        """Tokenise what lies between the marks; only here do control strings become tokens."""
        tokens = Tokens([], [])
        start = 0
        for piece in text.split(mark):
            encoding = self._tokenizer.encode(piece, add_special_tokens=False)
            tokens.ids.extend(encoding.ids)
            tokens.starts.extend(start + offset for offset, _ in encoding.offsets)
            start += len(piece) + 1
        return tokens

    def start(self, text: str, mark: str, *, most: int | None) -> Tokens:
        """Tokenise a text, or no more of its start than shows that it has more than `most`."""
        end = len(text) if most is None else CHARACTERS * (max(most, 0) + self.longest_token)
        while end < len(text):
            tokens = self.tokens(text[:end], mark)
            if most is not None and self.outgrow(tokens.ids, most):
                return tokens
            end *= 2
        return self.tokens(text, mark)

    def behind(
        self, before: str, alone: list[int], after: str, mark: str, *, most: int | None
    ) -> Tokens:
        """Return the tokens of `after` as they follow `before`, none of them spanning both.

        Where tokenising the two together would not merge across, this is that; so that a
        tokenizer that treats the start of a text apart sees no start here. `alone` are the ids of
        `before`.
        """
        both = None if most is None else most + len(alone)
        together = self.start(before + after, mark, most=both)
        if together.ids[: len(alone)] != alone:
            return self.start(after, mark, most=most)
        starts = [start - len(before) for start in together.starts[len(alone) :]]
        return Tokens(together.ids[len(alone) :], starts)

    def is_long(self, text: str, *, most: int) -> bool:
        """Say whether a text probably has more than `most` tokens."""
        return len(text) > CHARACTERS * (most + self.longest_token)

    def outgrow(self, ids: Sequence[int], most: int) -> bool:
        """Say whether a text that begins with these ids has more than `most`, however it goes on.

        The last ones may be others then, but none that begin a token's length before the end.
        """
        return len(ids) > most + self.longest_token

    @cached_property
    def longest_token(self) -> int:
        """A bound of the bytes that one token stands for: those of the longest written form."""
        return max(len(piece.encode()) for piece in self._tokenizer.get_vocab())
