"""From what the network gives to the lines of a generation: drawing, text, the end of a row."""

from array import array
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import Literal

from core.errors import InvalidRequest
from models.nn.chat import Renderer
from models.spec import SamplingSpec
from models.wire import GenerateDelta, GenerateEnd, GenerateOpened, GenerateStart
from worker.engine.demonstrations import Prompt
from worker.engine.echo import Echo, echoes_tokens, scored_for_echo
from worker.engine.generation import Generation
from worker.engine.intake import token_limit
from worker.engine.request import Outbox
from worker.engine.resident import Resident
from worker.engine.sampler import LIKELIEST, Draw, Drawn
from worker.engine.scheduler import Chunk, Step
from worker.engine.sequence import Choice, Footing, choice_seed
from worker.engine.text import Piece, TextStream

COLDEST = 1e-4
"""Below this temperature a row is greedy: the quotient of its logits would leave float32."""

TOLD_TOGETHER = 64
"""Tokens of a row that are told at once where nobody reads along: a long answer is not silent."""

READER_SECONDS, MOST_SECONDS = 0.002, 0.06
"""How long those who read along are told nothing, by their number, and at most.

What is told to one of many takes some tenths of a millisecond from the cores that compute, here, in
the api and, on one machine, in its reader: a tenth of the time at this pace.
"""

Reason = Literal["stop", "length"]


class Writer:
    """Turns generations into rows and what these draw into lines."""

    def __init__(self, renderer: Renderer, outbox: Outbox, *, context: int) -> None:
        self._renderer = renderer
        self._outbox = outbox
        self._context = context
        spellings = renderer.spellings  # found here, not while the first answer is told
        self._bytes_of = lambda token: spellings.get(token, b"")
        self._echo = Echo(renderer, bytes_of=self._bytes_of)

    def open(self, generation: Generation, resident: Resident | None) -> list[Choice]:
        """Return a row for every choice, now that the adapter is known, and say so.

        `InvalidRequest` for a classifier, or where its prefix and demonstrations leave no room.
        """
        prompt, footing = Prompt(generation.prompt), Footing()
        if resident is not None:
            _require_generative(resident)
            footing = resident.footing
            if resident.demonstrations is not None:
                prompt = resident.demonstrations.prompt(generation.source)
                generation.prompt = prompt.ids
        sampling = generation.sampling
        limit = token_limit(
            len(prompt.ids), sampling=sampling, context=self._context, prefix=footing.rows
        )
        scored = scored_for_echo(prompt) if echoes_tokens(sampling) else []
        rows = [
            Choice(
                request=generation,
                index=index,
                prompt=prompt.ids,
                own=prompt.own,
                footing=footing,
                scored=scored,
                top=sampling.top_logprobs,
                limit=limit,
                seed=choice_seed(generation.seed, index),
                draw=_draw_of_all(sampling),
                told_together=_told_together(generation),
                text=TextStream(
                    bytes_of=self._bytes_of, stop=sampling.stop, with_tokens=sampling.logprobs
                ),
            )
            for index in range(sampling.n)
        ]
        self._outbox.put(generation, GenerateOpened())
        return rows

    def start(self, choice: Choice) -> None:
        """Say that a row was admitted, and give back its prompt if that is wanted."""
        generation = choice.request
        if not generation.started:
            generation.started = True
            self._outbox.put(generation, GenerateStart(prompt_tokens=len(generation.prompt)))
        if generation.sampling.echo and (text := self._echo.begin(choice)):
            self._outbox.put(generation, GenerateDelta(index=choice.index, text=text))

    def draws(self, step: Step, *, ahead: int = 0) -> list[Draw]:
        """Say how every token of a step is to be drawn, drafted ones behind their row's own.

        Or of one so many steps ahead, if these rows go on.
        """
        if not step.drafts:
            return [choice.draw or self._draw(choice, ahead=ahead) for choice in step.drawing()]
        return [
            self._draw(choice, ahead=drafted)
            for choice in step.drawing()
            for drafted in range(1 + len(step.draft(choice).tokens))
        ]

    def _draw(self, choice: Choice, *, ahead: int = 0) -> Draw:
        sampling = choice.sampling
        greedy = sampling.temperature < COLDEST
        early = _is_early(choice, ahead=ahead)
        if greedy and not early and not sampling.logprobs:
            return LIKELIEST
        return Draw(
            temperature=0.0 if greedy else sampling.temperature,
            top_p=sampling.top_p,
            uniform=0.0 if greedy else choice.uniform(ahead=ahead),
            top_logprobs=sampling.top_logprobs if sampling.logprobs else None,
            banned=tuple(self._renderer.eos_ids) if early else (),
        )

    def seconds_until_told(self, step: Step) -> float:
        """Return for how long nobody who reads along a row that decodes is told anything."""
        readers = [choice for choice in step.decodes if choice.request.stream]
        return _told_again(readers) - monotonic()

    def tokens_until_told(self, step: Step) -> int:
        """Return how many tokens every row that decodes may draw until one is told or is full.

        Readers may be told before; see `seconds_until_told`.
        """
        if any(choice.told_together == 1 for choice in step.decodes):
            return 1
        return min(
            min(choice.told_together - len(choice.untold), choice.limit - len(choice.generated))
            for choice in step.decodes
        )

    def end_tokens(self, step: Step) -> "array[int]":
        """Return the tokens that end an answer of any row that decodes, or that it may not draw."""
        ignored = all(row.sampling.ignore_eos and not _is_early(row) for row in step.decodes)
        return array("q", () if ignored else self._renderer.eos_ids)

    def echo(self, choice: Choice, chunk: Chunk, scored: list[Drawn]) -> None:
        """Give back a chunk of the request's own tokens, if logprobs are wanted.

        Their text was told when the row was admitted.
        """
        self._tell(choice, [Piece("", self._echo.tokens(choice, chunk, scored))], reason=None)

    def take(self, choice: Choice, drawn: Drawn) -> bool:
        """Take a row's next token, and say whether this was its last.

        Its text is told now if it is the last, or the first that a reader gets; else with others.
        """
        if not choice.limit:
            self._tell_last(choice, [], reason="length")
            return True
        choice.generated.append(drawn.token)
        ended = drawn.token in self._renderer.eos_ids and not choice.sampling.ignore_eos
        if not ended:
            choice.untold.append(drawn)
        full = len(choice.generated) >= choice.limit
        awaited = choice.request.stream and len(choice.generated) == 1
        held = len(choice.untold) < choice.told_together and not awaited
        if held and not ended and not full:
            return False
        choice.told_at = monotonic()
        pieces = [self._push_untold(choice)]
        stopped = choice.text.stopped
        if not stopped and (ended or full):
            pieces.append(choice.text.finish())
        reason: Reason | None = "stop" if ended or stopped else "length" if full else None
        if reason is None:
            self._tell(choice, pieces, reason=None)
            return False
        self._tell_last(choice, pieces, reason=reason)
        return True

    def tell_readers(self, choices: Sequence[Choice]) -> None:
        """Tell those who read along what was drawn for them, unless all were told just now."""
        readers = [one for one in choices if one.request.stream and one.slot is not None]
        now = monotonic()
        if now < _told_again(readers):
            return
        for choice in readers:
            choice.told_at = now
            self._tell(choice, [self._push_untold(choice)], reason=None)

    def end(self, generation: Generation) -> None:
        """Say that all choices have ended."""
        counts = GenerateEnd(
            prompt_tokens=len(generation.prompt),
            completion_tokens=generation.completion_tokens,
            cached_tokens=generation.cached_tokens,
            accepted_tokens=generation.accepted_tokens,
            rejected_tokens=generation.rejected_tokens,
        )
        self._outbox.put(generation, counts)

    def _tell_last(self, choice: Choice, pieces: list[Piece], *, reason: Reason) -> None:
        choice.request.completion_tokens += len(choice.generated)
        if choice.index == 0:
            choice.request.cached_tokens = choice.cached
        self._tell(choice, pieces, reason=reason)

    def _tell(self, choice: Choice, pieces: list[Piece], *, reason: Reason | None) -> None:
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        if text or tokens or reason:
            delta = GenerateDelta(
                index=choice.index, text=text, tokens=tokens, finish_reason=reason
            )
            self._outbox.put(choice.request, delta)

    def _push_untold(self, choice: Choice) -> Piece:
        untold, choice.untold = choice.untold, []
        return choice.text.push(*untold, invisible=self._renderer.eos_ids)


def _draw_of_all(sampling: SamplingSpec) -> Draw | None:
    """Return how each token of an answer is drawn, if all of them are drawn alike."""
    greedy = sampling.temperature < COLDEST
    return LIKELIEST if greedy and not sampling.min_tokens and not sampling.logprobs else None


def _told_together(generation: Generation) -> int:
    """Return how many tokens of a row wait to be told; stop strings are looked for at once."""
    return 1 if generation.sampling.stop else TOLD_TOGETHER


def _is_early(choice: Choice, *, ahead: int = 0) -> bool:
    """Say whether the row may not end yet, so many tokens ahead."""
    return len(choice.generated) + ahead < choice.sampling.min_tokens


def _told_again(readers: Sequence[Choice]) -> float:
    """Return when those who read along rows of one step are to be told something."""
    told_at = min((choice.told_at for choice in readers), default=inf)
    return told_at + min(READER_SECONDS * len(readers), MOST_SECONDS)


def _require_generative(resident: Resident) -> None:
    if resident.class_labels is not None:
        raise InvalidRequest(
            "This adapter is a classifier and generates no text; use /v1/classifications.",
            code="not_generative",
            param="model",
        )
