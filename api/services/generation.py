"""From one request to the engine and back: as many prompts as it has, their lines as they come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import structlog

from api.engine_client import EngineClient
from api.errors import internal_fault
from api.schemas.sampling import CompletionTokens, PromptTokens, SamplingRequest, Usage
from core.errors import GraftworkError, InvalidRequest, Unavailable
from core.settings import LimitSettings
from models.spec import SamplingSpec
from models.wire import AnyGenerateLine, GenerateEnd, GenerateRequest, GenerateStart

QUEUED_LINES = 64
MAX_CHOICES = 128

log = structlog.get_logger(__name__)

Line = tuple[int, AnyGenerateLine]
Lines = AsyncGenerator[Line]


async def generate(engine: EngineClient, requests: Sequence[GenerateRequest]) -> Lines:
    """Yield (number of the prompt, line) until every prompt has ended; close it to cancel all."""
    queue: asyncio.Queue[Line | GraftworkError] = asyncio.Queue(QUEUED_LINES)
    tasks = [
        asyncio.create_task(_pump(engine, request, number=number, queue=queue))
        for number, request in enumerate(requests)
    ]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, GraftworkError):
                raise item
            running -= isinstance(item[1], GenerateEnd)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    engine: EngineClient,
    request: GenerateRequest,
    *,
    number: int,
    queue: asyncio.Queue[Line | GraftworkError],
) -> None:
    try:
        async with engine.generate(request) as lines:
            async for line in lines:
                await queue.put((number, line))
                if isinstance(line, GenerateEnd):
                    return
        raise Unavailable("The engine stopped in mid-answer.", code="engine_unavailable")
    except GraftworkError as error:
        await queue.put(error)
    except Exception as error:
        # An error lost in this task would leave the reader waiting for ever.
        log.error("generation failed", exc_info=error)
        await queue.put(internal_fault())


async def admitted(lines: Lines, *, prompts: int) -> Lines:
    """Wait until every prompt is taken and one begins, and return all lines.

    So a refusal is still an answer; prompts beyond the engine's slots keep nobody waiting.
    """
    heard: list[Line] = []
    taken: set[int] = set()
    begun = False
    while not begun or len(taken) < prompts:
        number, line = await anext(lines)
        heard.append((number, line))
        taken.add(number)
        begun = begun or isinstance(line, GenerateStart)
    return _replay(heard, lines)


async def _replay(heard: list[Line], lines: Lines) -> Lines:
    async with aclosing(lines):
        for line in heard:
            yield line
        async for line in lines:
            yield line


class Counts:
    """Adds up the tokens of several prompts."""

    def __init__(self) -> None:
        self._prompt = 0
        self._completion = 0
        self._cached = 0
        self._accepted = 0
        self._rejected = 0

    def add(self, line: GenerateEnd) -> None:
        """Take in what one prompt cost."""
        self._prompt += line.prompt_tokens
        self._completion += line.completion_tokens
        self._cached += line.cached_tokens
        self._accepted += line.accepted_tokens
        self._rejected += line.rejected_tokens

    def usage(self) -> Usage:
        """Return the sums."""
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            total_tokens=self._prompt + self._completion,
            prompt_tokens_details=PromptTokens(cached_tokens=self._cached),
            completion_tokens_details=CompletionTokens(
                accepted_prediction_tokens=self._accepted,
                rejected_prediction_tokens=self._rejected,
            ),
        )


def check_bounds(body: SamplingRequest, *, prompts: int, limits: LimitSettings) -> None:
    """Refuse what would take more than an operator grants, before anything is allocated."""
    choices = body.n or 1
    if choices > limits.choices or choices * prompts > MAX_CHOICES:
        raise _too_many("n", f"at most {limits.choices}, and {MAX_CHOICES} with all prompts")
    for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
        if (getattr(body, name, None) or 0) > limits.max_tokens:
            raise _too_many(name, f"at most {limits.max_tokens}")


def sampling(body: SamplingRequest, *, max_tokens: int | None, **more: Any) -> dict[str, Any]:
    """Return the engine's sampling block; null means the default, as OpenAI reads it."""
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest("'min_tokens' is over 'max_tokens'.", param="min_tokens")
    chosen = {
        "max_tokens": max_tokens,
        "min_tokens": body.min_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "ignore_eos": body.ignore_eos,
        "n": body.n,
        "stop": body.stop_texts,
        **more,
    }
    given = {key: value for key, value in chosen.items() if value is not None}
    return SamplingSpec.model_validate(given).model_dump()


def _too_many(param: str, bound: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{param}': {bound}.", code="invalid_value", param=param
    )
