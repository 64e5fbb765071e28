"""Tokens that rows will probably draw, computed along in steps that take no longer for them.

A row repeats itself, its prompt, or what its caller predicts. What followed its last tokens there
is put behind them, and every row of the step draws what comes next. As long as a drawn token is the
drafted one, the row behind it was right and its draw counts: the tokens are those of one step each,
only sooner.
Source: prompt lookup decoding (Saxena, 2023), a form of speculative decoding (arXiv 2211.17192).
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from sys import byteorder

import structlog

from models.nn.terms import Terms
from worker.engine.runner import Runner
from worker.engine.scheduler import Draft, Step
from worker.engine.sequence import Choice

LONGEST_MATCH = 3
"""So many of a row's last tokens are looked for, then fewer; longer matches guess no better."""
WINDOW = 4096
"""Tokens of a row in which they are looked for, so that a long row costs no step its time."""

log = structlog.get_logger(__name__)


class Drafter:
    """Puts drafts into steps of few rows."""

    def __init__(self, runner: Runner) -> None:
        """Draft as many rows as `runner` says a step has to spare."""
        self._runner = runner

    def extend(self, step: Step, *, terms: Mapping[str, Terms]) -> Step:
        """Return a step with drafts; as it is if there is no room, or if guessing fails."""
        try:
            spare = self._runner.spare(step, terms=terms)
            return with_drafts(step, spare=spare) if spare else step
        except Exception as error:
            log.warning("no_drafts", exc_info=error)
            return step


def with_drafts(step: Step, *, spare: int) -> Step:
    """Return a step with up to `spare` rows more, dealt out evenly among those that decode."""
    guesses = {choice: _guess(choice, most=spare) for choice in step.decodes}
    given = dict.fromkeys(guesses, 0)
    for place in range(spare):
        for choice, guess in guesses.items():
            if spare and place < len(guess.tokens):
                given[choice] += 1
                spare -= 1
    drafts = {
        choice: guesses[choice]._replace(tokens=guesses[choice].tokens[:count])
        for choice, count in given.items()
        if count
    }
    return replace(step, drafts=drafts) if drafts else step


def _guess(choice: Choice, *, most: int) -> Draft:
    """Return what may follow a row's last token and be drawn before its limit."""
    own = [*choice.prompt, *choice.generated][-WINDOW:]
    predicted = choice.request.prediction
    if predicted:  # it is what follows the prompt
        predicted = [*choice.prompt[-LONGEST_MATCH:], *predicted]
    before_last = choice.limit - len(choice.generated) - 1
    return continuation(own, most=min(most, before_last), predicted=predicted)


def continuation(ids: Sequence[int], *, most: int, predicted: Sequence[int] = ()) -> Draft:
    """Return up to `most` tokens that followed the last ones where they, or fewer, stood before.

    The longest match counts; of equal ones that in what is predicted, and of its places the latest.
    """
    own, other = _as_text(ids), _as_text(predicted)
    for length in range(min(LONGEST_MATCH, len(own) - 1), 0, -1):
        for stream in (other, own):
            place = stream.rfind(own[-length:], 0, max(0, len(stream) - 1))
            if place >= 0:
                follower = place + length
                tokens = [ord(one) for one in stream[follower : follower + most]]
                return Draft(tokens, predicted=stream is other)
    return Draft([])


def _as_text(ids: Sequence[int]) -> str:
    """Return tokens as code points, of which strings find runs; there are more than of tokens."""
    return array("I", ids).tobytes().decode(f"utf-32-{byteorder[0]}e", "surrogatepass")
