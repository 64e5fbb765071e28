"""Tokens that rows will probably draw, computed along in steps that take no longer for them.

A row repeats itself and its prompt. What followed its last tokens before is put behind them, and
every row of the step draws what comes next. As long as a drawn token is the drafted one, the row
behind it was right and its draw counts: the tokens are those of one step each, only sooner.
Source: prompt lookup decoding (Saxena, 2023), a form of speculative decoding (arXiv 2211.17192).
"""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from worker.engine.scheduler import Step
from worker.engine.sequence import Choice

LONGEST_MATCH = 3
"""So many of a row's last tokens are looked for, then fewer; longer matches guess no better."""
WINDOW = 4096
"""Tokens of a row in which they are looked for, so that a long row costs no step its time."""


def with_drafts(step: Step, *, spare: int) -> Step:
    """Return a step with up to `spare` rows more, dealt out evenly among those that decode."""
    guesses = {choice: _guess(choice, most=spare) for choice in step.decodes}
    drafts: dict[Choice, list[int]] = {}
    for place in range(spare):
        for choice, guess in guesses.items():
            if spare and place < len(guess):
                drafts.setdefault(choice, []).append(guess[place])
                spare -= 1
    return replace(step, drafts=drafts) if drafts else step


def _guess(choice: Choice, *, most: int) -> list[int]:
    """Return what may follow a row's last token and be drawn before its limit."""
    before_last = choice.limit - len(choice.generated) - 1
    ids = [*choice.prompt, *choice.generated][-WINDOW:]
    return continuation(ids, most=min(most, before_last))


def continuation(ids: Sequence[int], *, most: int) -> list[int]:
    """Return up to `most` tokens that followed the last ones where they, or fewer, stood before.

    The longest match counts, and of its places the latest.
    """
    stream = array("I", ids)
    size, text = stream.itemsize, stream.tobytes()
    for length in range(min(LONGEST_MATCH, len(stream) - 1), 0, -1):
        last, stop = text[-length * size :], len(text) - 1
        while (place := text.rfind(last, 0, stop)) >= 0:
            if place % size == 0:
                follower = place // size + length
                return stream[follower : follower + most].tolist()
            stop = place + len(last) - 1  # it lay across the bytes of other tokens
    return []
