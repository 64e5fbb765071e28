"""Tokens into text as it streams: whole characters only, and nothing that may be a stop string."""

import codecs
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from models.wire import TokenChoice, TokenPiece
from worker.engine.sampler import Drawn

BytesOf = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be shown now, and the tokens that begin in it."""

    text: str
    tokens: list[TokenChoice]


class TextStream:
    """The text of one row, released as far as it can no longer become a stop string.

    A token is released with the text it begins in; one that begins at or after a stop string is
    never shown.
    """

    def __init__(
        self, *, bytes_of: BytesOf, stop: Sequence[str] = (), with_tokens: bool = False
    ) -> None:
        self._bytes_of = bytes_of
        self._stop = tuple(text for text in stop if text)
        self._with_tokens = with_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._shown = 0
        self._tokens: list[tuple[int, TokenChoice]] = []
        self.stopped = False
        """Whether a stop string was met; the text before it is all there is."""

    def push(self, *tokens: Drawn, invisible: Container[int] = ()) -> Piece:
        """Take the next tokens, one by one where there are stop strings.

        An invisible one (end of sequence) adds no text.
        """
        for drawn in tokens:
            silent = drawn.token in invisible
            if self._with_tokens:
                choice = describe(drawn, bytes_of=self._bytes_of, silent=silent)
                self._tokens.append((self._shown + len(self._held), choice))
            if not silent:
                self._held += self._decoder.decode(self._bytes_of(drawn.token))
        return self._release()

    def finish(self) -> Piece:
        """Return what was held back, with a replacement character for a character cut short."""
        self._held += self._decoder.decode(b"", final=True)
        return self._show(len(self._held), everything=True)

    def _release(self) -> Piece:
        if not self._stop:
            return self._show(len(self._held), everything=True)
        found = self._find_stop()
        if found is not None:
            self.stopped = True
            piece = self._show(found, everything=False)
            self._held, self._tokens = "", []
            return piece
        kept = max(_overlap(self._held, stop) for stop in self._stop)
        return self._show(len(self._held) - kept, everything=kept == 0)

    def _find_stop(self) -> int | None:
        places = (self._held.find(stop) for stop in self._stop)
        return min((place for place in places if place >= 0), default=None)

    def _show(self, length: int, *, everything: bool) -> Piece:
        text, self._held = self._held[:length], self._held[length:]
        self._shown += length
        shown = [choice for start, choice in self._tokens if everything or start < self._shown]
        del self._tokens[: len(shown)]
        return Piece(text, shown)


def describe(drawn: Drawn, *, bytes_of: BytesOf, silent: bool) -> TokenChoice:
    """Return a token and its alternatives as the wire shows them."""
    top = [
        TokenPiece(token, *_spell(bytes_of(token)), logprob=logprob) for token, logprob in drawn.top
    ]
    text, spelled = _spell(bytes_of(drawn.token))
    return TokenChoice(
        id=drawn.token, text=text, bytes=spelled, logprob=drawn.logprob, top=top, silent=silent
    )


def _spell(spelling: bytes) -> tuple[str, list[int]]:
    return spelling.decode("utf-8", "replace"), list(spelling)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
