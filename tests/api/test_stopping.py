"""An api that is told to stop: whoever waits for the engine is told so, nobody is cut off."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, APIStatusError, OpenAI

from migrations import migrate
from tests.api.conftest import Stack, run_stack, user
from tests.processes import is_alive, wait_for

HURRIED = """
from api import server
server.PATIENCE_SECONDS = 0.5
from api.__main__ import main
main()
"""


@pytest.fixture
def hurried(tmp_path: Path, redis_url: str) -> Iterator[Stack]:
    """An installation whose api is soon out of patience."""
    url = f"sqlite:///{tmp_path / 'graftwork.db'}"
    migrate(url)
    program = ("-c", HURRIED)
    yield from run_stack(tmp_path, database_url=url, broker_url=redis_url, program=program)


def test_who_waits_for_the_engine_is_told_that_the_server_stops(hurried: Stack) -> None:
    got: list[str] = []

    def read(client: OpenAI) -> Any:
        stream = client.chat.completions.create(model="tiny", messages=user("stall"), stream=True)
        got.extend(chunk.choices[0].delta.content or "" for chunk in stream)

    def write(client: OpenAI) -> Any:
        return client.chat.completions.create(model="tiny", messages=user("stall"))

    def queue(client: OpenAI) -> Any:
        return client.completions.create(model="tiny", prompt="queue", stream=True)

    def embed(client: OpenAI) -> Any:
        return client.embeddings.create(model="tiny", input="stall")

    calls: list[Callable[[OpenAI], Any]] = [read, write, queue, embed]
    url = f"{hurried.url}/v1"
    with (
        OpenAI(base_url=url, api_key=hurried.key(), max_retries=0) as client,
        ThreadPoolExecutor(len(calls)) as pool,
    ):
        begun: list[Future[Any]] = [pool.submit(call, client) for call in calls]
        wait_for(lambda: len(hurried.engine.requests) == 3 and hurried.engine.read and len(got) > 1)
        os.kill(hurried.process, signal.SIGTERM)
        errors = [future.exception(10) for future in begun]
    assert "".join(got) == "[base] stall"
    assert isinstance(errors[0], APIError)
    assert not isinstance(errors[0], APIStatusError)
    for error in errors:
        assert isinstance(error, APIError)
        assert error.code == "server_stopping"
    for error in errors[1:]:
        assert isinstance(error, APIStatusError)
        assert error.status_code == 503
        assert error.response.headers["retry-after"] == "5"
    wait_for(lambda: not is_alive(hurried.process), seconds=3)
