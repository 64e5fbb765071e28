"""Whole replies: written beside the event loop, an answer at a time."""

import asyncio
import gc
import json

import pytest

from api.app import create_app
from api.schemas.chat import ChatRequest
from api.schemas.text import TextRequest
from api.services import chat, text
from core.settings import Settings
from models.wire import GenerateDelta, GenerateEnd, TokenChoice, TokenPiece

ANSWERS, TOKENS = 8, 200
ODD = '"choices":[]'
"""A name that reads like a part of the reply."""
BODIES = [
    (text, TextRequest(model=ODD, prompt="x", n=ANSWERS, logprobs=5, echo=True)),
    (
        chat,
        ChatRequest(
            model=ODD,
            messages=[{"role": "user", "content": "x"}],
            n=ANSWERS,
            logprobs=True,
            top_logprobs=5,
        ),
    ),
]


def token(number):
    spelled = f" {number}"
    top = [TokenPiece(place, spelled, list(spelled.encode()), -1.0) for place in range(5)]
    return TokenChoice(id=number, text=spelled, bytes=list(spelled.encode()), logprob=-0.5, top=top)


@pytest.mark.parametrize(("service", "body"), BODIES)
def test_others_have_their_turn_while_a_long_reply_is_written(service, body):
    turns, before = 0, None

    async def lines():
        nonlocal before
        for number in range(TOKENS):
            for index in range(ANSWERS):
                told = token(number)
                last = "length" if number == TOKENS - 1 else None
                yield (
                    0,
                    GenerateDelta(index=index, text=told.text, tokens=[told], finish_reason=last),
                )
        before = turns
        yield 0, GenerateEnd(prompt_tokens=1, completion_tokens=ANSWERS * TOKENS)

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def play():
        other = asyncio.create_task(take_turns())
        try:
            return await service.collect(lines(), body), turns - before
        finally:
            other.cancel()

    written, had = asyncio.run(play())
    reply = json.loads(written)
    assert had > 1
    assert reply["model"] == ODD
    assert reply["usage"]["completion_tokens"] == ANSWERS * TOKENS
    assert [choice["index"] for choice in reply["choices"]] == [*range(ANSWERS)]
    for choice in reply["choices"]:
        said = choice["text"] if service is text else choice["message"]["content"]
        assert said == "".join(f" {number}" for number in range(TOKENS))
        assert choice["finish_reason"] == "length"
        (column,) = {"tokens", "content"} & choice["logprobs"].keys()
        assert len(choice["logprobs"][column]) == TOKENS


def test_the_garbage_collector_looks_through_little_amid_streams(tmp_path):
    app = create_app(Settings(data_dir=tmp_path))

    async def frozen():
        async with app.router.lifespan_context(app):
            return gc.get_freeze_count()

    assert asyncio.run(frozen()) > 10_000
    assert not gc.get_freeze_count()
    told = token(1)
    assert not gc.is_tracked(told)
    assert not gc.is_tracked(told.top[0])
