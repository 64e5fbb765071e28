"""Tokens that rows will probably draw, computed along in steps that take no longer for them.

A row repeats itself, its prompt, or what its caller predicts. What followed its last tokens there
is put behind them, and every row of the step draws what comes next. As long as a drawn token is the
drafted one, the row behind it was right and its draw counts: the tokens are those of one step each,
only sooner.
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
    own = [*choice.prompt, *choice.generated][-WINDOW:]
    predicted = choice.request.prediction
    if predicted:  # it is what follows the prompt
        predicted = [*choice.prompt[-LONGEST_MATCH:], *predicted]
    before_last = choice.limit - len(choice.generated) - 1
    return continuation(own, most=min(most, before_last), predicted=predicted)


def continuation(ids: Sequence[int], *, most: int, predicted: Sequence[int] = ()) -> list[int]:
    """Return up to `most` tokens that followed the last ones where they, or fewer, stood before.

    The longest match counts; of equal ones that in what is predicted, and of its places the latest.
    """
    own = array("I", ids)
    for length in range(min(LONGEST_MATCH, len(own) - 1), 0, -1):
        for stream in (array("I", predicted), own):
            follower = _behind(stream, own[-length:])
            if follower is not None:
                return stream[follower : follower + most].tolist()
    return []


def _behind(stream: "array[int]", wanted: "array[int]") -> int | None:
    """Return the place behind the last of some tokens that more tokens follow."""
    size, text, pattern = stream.itemsize, stream.tobytes(), wanted.tobytes()
    stop = len(text) - 1
    while (place := text.rfind(pattern, 0, max(0, stop))) >= 0:
        if place % size == 0:
            return place // size + len(wanted)
        stop = place + len(pattern) - 1  # it lay across two tokens
    return None
