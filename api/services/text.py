"""Use case: go on with texts."""

import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import time
from typing import Any

from pydantic import BaseModel

from api.schemas.text import TextChoice, TextCompletion, TextLogprobs, TextRequest
from api.services import whole
from api.services.catalog import Target
from api.services.chat import floor_logprob
from api.services.generation import Counts, Lines, check_bounds, sampling
from core.ids import new_id
from core.settings import LimitSettings
from models.wire import GenerateDelta, GenerateEnd, GenerateRequest, TokenChoice, TokenPiece

DEFAULT_MAX_TOKENS = 16


def plan(body: TextRequest, target: Target, *, limits: LimitSettings) -> list[GenerateRequest]:
    """Return what to ask of the engine: one request a prompt."""
    prompts = body.prompts
    check_bounds(body, prompts=len(prompts), limits=limits)
    max_tokens = body.max_tokens
    if max_tokens is None:
        max_tokens = max(DEFAULT_MAX_TOKENS, body.min_tokens or 0)
    drawn = sampling(
        body,
        max_tokens=max_tokens,
        logprobs=None if body.logprobs is None else True,
        top_logprobs=body.logprobs,
        echo=body.echo,
    )
    return [
        GenerateRequest(
            adapter=target.adapter,
            tenant=target.tenant,
            stream=bool(body.stream),
            sampling=drawn,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=None if isinstance(prompt, str) else prompt,
        )
        for prompt in prompts
    ]


class _Answer:
    """One choice so far; offsets count characters from the start of its text."""

    def __init__(self, index: int, *, with_logprobs: bool) -> None:
        self._index = index
        self._with_logprobs = with_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def add(self, line: GenerateDelta) -> TextChoice:
        """Take in a piece, perhaps the whole, and return it as a choice."""
        offsets = [self._advance(token) for token in line.tokens]
        return TextChoice(
            index=self._index,
            text=line.text,
            logprobs=self._logprobs(line.tokens, offsets=offsets),
            finish_reason=line.finish_reason,
        )

    def _advance(self, token: TokenChoice) -> int:
        """Return where a token begins; a character split by tokens counts once, at its end."""
        begin = self._length
        if not token.silent:
            self._length += len(self._decoder.decode(bytes(token.bytes)))
        return begin

    def _logprobs(self, tokens: list[TokenChoice], *, offsets: list[int]) -> TextLogprobs | None:
        if not self._with_logprobs:
            return None
        return TextLogprobs(
            tokens=[_name(token) for token in tokens],
            token_logprobs=[
                None if token.logprob is None else floor_logprob(token.logprob) for token in tokens
            ],
            top_logprobs=[_alternatives(token) for token in tokens],
            text_offset=offsets,
        )


def _alternatives(token: TokenChoice) -> dict[str, float] | None:
    """Return the likeliest in a token's place, and the token itself, which OpenAI always counts."""
    if token.logprob is None:
        return None
    pieces: list[TokenChoice | TokenPiece] = [*token.top, token]
    return {_name(piece): floor_logprob(piece.logprob) for piece in pieces}


def _name(token: TokenChoice | TokenPiece) -> str:
    """Return a token's text; parts of characters are told apart by their bytes, as OpenAI's are."""
    try:
        bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text


def _answers(body: TextRequest) -> list[_Answer]:
    count = len(body.prompts) * (body.n or 1)
    return [_Answer(index, with_logprobs=body.logprobs is not None) for index in range(count)]


def _head(body: TextRequest) -> dict[str, Any]:
    return {"id": new_id("cmpl"), "created": int(time()), "model": body.model}


async def collect(lines: Lines, body: TextRequest) -> str:
    """Return the whole reply, a `TextCompletion`, as JSON."""
    answers = _answers(body)
    return await whole.collect(
        lines,
        answers=len(answers),
        each=body.n or 1,
        choice=lambda answer: answers[answer.index].add(answer),
        reply=lambda usage: TextCompletion(**_head(body), choices=[], usage=usage),
    )


async def stream(lines: Lines, body: TextRequest) -> AsyncGenerator[BaseModel]:
    """Yield the pieces of all answers as they come, then the counts if they are wanted."""
    answers, counts, head = _answers(body), Counts(), _head(body)
    async with aclosing(lines):
        async for number, line in lines:
            if isinstance(line, GenerateEnd):
                counts.add(line)
            elif isinstance(line, GenerateDelta):
                answer = answers[number * (body.n or 1) + line.index]
                yield TextCompletion(**head, choices=[answer.add(line)])
    if body.include_usage:
        yield TextCompletion(**head, choices=[], usage=counts.usage())
