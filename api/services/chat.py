"""Use case: go on with a conversation."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from time import time
from typing import Any

from pydantic import BaseModel

from api.schemas.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    ChatToken,
    Message,
    TopToken,
    joined,
)
from api.schemas.sampling import FinishReason, Usage
from api.services import whole
from api.services.catalog import Target
from api.services.generation import Counts, Lines, check_bounds, sampling
from core.ids import new_id
from core.settings import LimitSettings
from models.wire import GenerateDelta, GenerateEnd, GenerateRequest, TokenChoice

LEAST_LOGPROB = -9999.0
"""What stands for a probability of zero, which JSON cannot say."""


def plan(body: ChatRequest, target: Target, *, limits: LimitSettings) -> GenerateRequest:
    """Return what to ask of the engine."""
    check_bounds(body, prompts=1, limits=limits)
    return GenerateRequest(
        adapter=target.adapter,
        tenant=target.tenant,
        stream=bool(body.stream),
        messages=turns(body.messages),
        prediction=joined(body.prediction.content) if body.prediction else None,
        sampling=sampling(
            body,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=body.logprobs,
            top_logprobs=body.top_logprobs,
        ),
    )


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as the engine takes them."""
    return [
        {"role": "system" if turn.role == "developer" else turn.role, "content": turn.text}
        for turn in messages
    ]


async def collect(lines: Lines, body: ChatRequest) -> str:
    """Return the whole reply, a `ChatCompletion`, as JSON."""
    choices = body.n or 1
    return await whole.collect(
        lines,
        answers=choices,
        each=choices,
        choice=lambda answer: ChatChoice(
            index=answer.index,
            message=ChatMessage(content=answer.text),
            logprobs=_logprobs(answer.tokens, body),
            finish_reason=answer.finish_reason or "stop",
        ),
        reply=lambda usage: ChatCompletion(**_head(body), choices=[], usage=usage),
    )


def _head(body: ChatRequest) -> dict[str, Any]:
    return {"id": new_id("chatcmpl"), "created": int(time()), "model": body.model}


class _Writer:
    """Makes the chunks of one stream."""

    def __init__(self, body: ChatRequest) -> None:
        self._head = _head(body)

    def chunk(self, choices: Sequence[ChatChunkChoice], *, usage: Usage | None = None) -> ChatChunk:
        """Return a chunk with these choices."""
        return ChatChunk.model_validate({**self._head, "choices": choices, "usage": usage})

    def piece(
        self,
        index: int,
        delta: dict[str, str],
        *,
        logprobs: ChatLogprobs | None = None,
        finish: FinishReason | None = None,
    ) -> ChatChunk:
        """Return a chunk that adds to one choice."""
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)
        return self.chunk([choice])


async def stream(lines: Lines, body: ChatRequest) -> AsyncGenerator[BaseModel]:
    """Yield the chunks of an answer: the roles, the texts, the reasons it ended, the counts."""
    writer, counts = _Writer(body), Counts()
    async with aclosing(lines):
        for index in range(body.n or 1):
            yield writer.piece(index, {"role": "assistant", "content": ""})
        async for _, line in lines:
            if isinstance(line, GenerateEnd):
                counts.add(line)
            elif isinstance(line, GenerateDelta):
                logprobs = _logprobs(line.tokens, body) if line.tokens else None
                if line.text or logprobs:
                    yield writer.piece(line.index, {"content": line.text}, logprobs=logprobs)
                if line.finish_reason:
                    yield writer.piece(line.index, {}, finish=line.finish_reason)
    if body.include_usage:
        yield writer.chunk([], usage=counts.usage())


def _logprobs(tokens: list[TokenChoice], body: ChatRequest) -> ChatLogprobs | None:
    if not body.logprobs:
        return None
    return ChatLogprobs(
        content=[
            ChatToken(
                token=token.text,
                logprob=floor_logprob(token.logprob),
                bytes=token.bytes,
                top_logprobs=[
                    TopToken(token=top.text, logprob=floor_logprob(top.logprob), bytes=top.bytes)
                    for top in token.top[: body.top_logprobs or 0]
                ],
            )
            for token in tokens
        ]
    )


def floor_logprob(value: float | None) -> float:
    """Return a logarithm that JSON can carry."""
    return LEAST_LOGPROB if value is None else max(value, LEAST_LOGPROB)
