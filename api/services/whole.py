"""Replies that are not streamed: what came of every answer, and the JSON of them all.

With logprobs they may hold some ten thousand tokens, which take seconds to be written. That is done
beside the event loop, an answer at a time: others read their streams meanwhile.
"""

from collections.abc import Callable, Sequence
from itertools import chain

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.schemas.sampling import Usage
from api.services.generation import Counts, Lines
from models.wire import GenerateDelta, GenerateEnd

_NO_CHOICES = '"choices":[]'
"""How a reply without an answer is written; within a text, its quotation marks would be escaped."""


async def collect(
    lines: Lines,
    *,
    answers: int,
    each: int,
    choice: Callable[[GenerateDelta], BaseModel],
    reply: Callable[[Usage], BaseModel],
) -> str:
    """Return the JSON of `reply`, which has no choices, with the `choice` of each whole answer.

    There are `each` answers to a prompt; those to prompt i begin at i * each.
    """
    parts: list[list[GenerateDelta]] = [[] for _ in range(answers)]
    counts = Counts()
    async for number, line in lines:
        if isinstance(line, GenerateDelta):
            parts[number * each + line.index].append(line)
        elif isinstance(line, GenerateEnd):
            counts.add(line)

    def write() -> str:
        before, after = reply(counts.usage()).model_dump_json().split(_NO_CHOICES)
        written = [
            choice(_join(index, found)).model_dump_json() for index, found in enumerate(parts)
        ]
        return f'{before}"choices":[{",".join(written)}]{after}'

    return await run_in_threadpool(write)


def _join(index: int, parts: Sequence[GenerateDelta]) -> GenerateDelta:
    """Return an answer as if it had been told at once."""
    return GenerateDelta(
        index=index,
        text="".join(part.text for part in parts),
        tokens=list(chain.from_iterable(part.tokens for part in parts)),
        finish_reason=(parts[-1].finish_reason if parts else None) or "stop",
    )
