"""Answers that go wrong on the way: refusals, faults, clients that leave or do not read."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    InternalServerError,
    OpenAI,
)

from api.engine_client import EngineClient
from api.services.generation import generate
from core.errors import GraftworkError
from models.wire import GenerateRequest
from tests.api.conftest import MIB, Stack, user


def wait_until(condition: Callable[[], bool], *, seconds: float) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)
    return time.monotonic() - started


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("refuse", 400, "context_length_exceeded"),
        ("unknown", 404, "adapter_not_found"),
        ("overload", 503, "engine_overloaded"),
    ],
)
def test_a_refusal_of_the_engine_is_the_answer(
    client: OpenAI, text: str, status: int, code: str, stream: bool
) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.chat.completions.create(model="tiny", messages=user(text), stream=stream)
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert (status == 503) == ("retry-after" in refused.value.response.headers)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("break", "engine_error"),
        ("vanish", "engine_unavailable"),
        ("garbage", "engine_unavailable"),
    ],
)
def test_an_error_in_mid_answer_is_never_a_whole_answer(
    client: OpenAI, text: str, code: str
) -> None:
    with pytest.raises(InternalServerError) as failed:
        client.chat.completions.create(model="tiny", messages=user(text))
    assert failed.value.code == code
    waits = failed.value.response.headers.get("retry-after")
    assert waits == ("5" if code == "engine_unavailable" else None)
    stream = client.chat.completions.create(model="tiny", messages=user(text), stream=True)
    got: list[str] = []
    with pytest.raises(APIError) as failed:
        got.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert failed.value.code == code
    assert "".join(got) == f"[base] {text}"


def test_a_fault_of_ours_is_told_without_its_text() -> None:
    class Faulty:
        def generate(self, _request: GenerateRequest) -> Any:
            raise ValueError("secret")

    async def ask() -> None:
        request = GenerateRequest(prompt="a", sampling={})
        async with aclosing(generate(cast("EngineClient", Faulty()), [request])) as lines:
            await asyncio.wait_for(anext(lines), 5)

    with pytest.raises(GraftworkError) as failed:
        asyncio.run(ask())
    assert (failed.value.status, failed.value.code) == (500, "internal_error")
    assert "secret" not in failed.value.message


def test_one_bad_prompt_of_many_ends_all(stack: Stack, client: OpenAI) -> None:
    before = stack.engine.cancelled
    with pytest.raises(BadRequestError):
        client.completions.create(model="tiny", prompt=["stall", "refuse"])
    wait_until(lambda: stack.engine.cancelled == before + 1, seconds=2)


def test_a_stream_begins_once_every_prompt_is_taken(stack: Stack, client: OpenAI) -> None:
    before = stack.engine.cancelled
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(model="tiny", prompt=["stall", "refuse late"], stream=True)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    wait_until(lambda: stack.engine.cancelled == before + 1, seconds=2)


def test_a_stream_waits_for_no_prompt_that_waits_for_a_slot(client: OpenAI) -> None:
    with client.completions.create(model="tiny", prompt=["a", "queue"], stream=True) as stream:
        assert next(iter(stream)).choices[0].text == "[base]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engine(stack: Stack, key: str, stream: bool) -> None:
    before, asked = stack.engine.cancelled, len(stack.engine.requests)

    async def leave() -> None:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key) as client:
            call = client.chat.completions.create(
                model="tiny", messages=user("stall"), stream=stream
            )
            if stream:
                reply = await call
                await anext(aiter(reply))
                await reply.close()
                return
            task = asyncio.create_task(call)
            await asyncio.to_thread(
                wait_until, lambda: len(stack.engine.requests) > asked, seconds=5
            )
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert wait_until(lambda: stack.engine.cancelled == before + 1, seconds=1) < 1


def test_sixty_four_at_once_get_their_own_answers(stack: Stack, key: str) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=key) as client:

            async def ask(number: int) -> str:
                reply = await client.chat.completions.create(
                    model="tiny", messages=user(f"n{number}")
                )
                return reply.choices[0].message.content

            return await asyncio.gather(*(ask(number) for number in range(64)))

    assert asyncio.run(run()) == [f"[base] n{number}" for number in range(64)]


def test_a_reader_that_does_not_read_costs_no_memory(stack: Stack, key: str) -> None:
    before = stack.engine.cancelled
    body = json.dumps({"model": "tiny", "messages": user("flood"), "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = urlsplit(stack.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        connection.recv(1024)
        time.sleep(0.3)
        filled = resident(stack.process)
        time.sleep(0.7)
        assert resident(stack.process) - filled < 8 * MIB
    wait_until(lambda: stack.engine.cancelled == before + 1, seconds=1)


def resident(process: int) -> int:
    """Return the bytes of memory that a process holds."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
