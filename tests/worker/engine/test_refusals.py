"""What is refused, of whom, and what that costs others."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from core.errors import GraftworkError, InvalidRequest
from models.nn.chat import Renderer
from models.nn.marked_text import MarkedText
from models.wire import (
    EmbedReply,
    EmbedRequest,
    GenerateRequest,
    Input,
)
from tests.worker.engine.conftest import World, ask_all, order
from worker.engine.engine import Engine

PROMPT = list(range(10, 30))


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine()


def test_a_text_that_cannot_fit_is_refused_unread(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MarkedText, "tokens", None)
    text = "a" * (256 * world.renderer.text.longest_token + 1)
    messages = [{"role": "user", "content": text}]
    for refused, param in zip(
        ask_all(engine, [order(text), GenerateRequest(sampling={}, messages=messages)]),
        ("prompt", "messages"),
        strict=True,
    ):
        assert (refused.code, refused.param) == ("context_length_exceeded", param)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lists the characters of whatever is tokenised."""
    found: list[int] = []
    pieces = MarkedText.tokens

    def noted(self: MarkedText, text: str, mark: str) -> Any:
        found.append(len(text))
        return pieces(self, text, mark)

    monkeypatch.setattr(MarkedText, "tokens", noted)
    return found


def test_a_text_that_is_refused_is_read_no_further_than_one_that_fits(
    world: World, engine: Engine, read: list[int]
) -> None:
    text = "a" * (256 * world.renderer.text.longest_token)
    messages = [{"role": "user", "content": text}]
    inputs = [Input(text="a"), Input(text=text)], [Input(messages=messages)]

    async def embed(sources: list[Input]) -> EmbedReply:
        return await engine.embed(EmbedRequest(inputs=sources))

    refused = ask_all(engine, [order(text), GenerateRequest(sampling={}, messages=messages)])
    for sources in inputs:
        with pytest.raises(InvalidRequest) as caught:
            asyncio.run(embed(sources))
        refused.append(caught.value)
    assert sum(read) < 2 * len(text)  # of four
    params = ["prompt", "messages", "inputs[1]", "inputs[0]"]
    for error, param in zip(refused, params, strict=True):
        assert (error.code, error.param) == ("context_length_exceeded", param)
        assert "context is 256 tokens; this text has more than " in error.message


def test_an_empty_prompt_begins_a_text(engine: Engine) -> None:
    answers = ask_all(engine, [order(""), order([])])
    assert [answer.prompt_tokens for answer in answers] == [1, 1]


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (order([5] * 256), "context_length_exceeded", "messages"),
        (order([5] * 250, max_tokens=7), "context_length_exceeded", "max_tokens"),
        (order("é" * 130), "context_length_exceeded", "messages"),
        (order("é" * 256), "context_length_exceeded", "prompt"),
        (order([5], temperature=9), "invalid_request", "temperature"),
        (order([5], tempo=1), "invalid_request", "tempo"),
        (order([5, 10**6]), "invalid_prompt", "prompt"),
        (order([-1]), "invalid_prompt", "prompt"),
        (GenerateRequest(sampling={}), "invalid_prompt", None),
        (GenerateRequest(sampling={}, prompt="a", prompt_ids=[1]), "invalid_prompt", None),
        (GenerateRequest(sampling={}, messages=[]), "invalid_messages", "messages"),
    ],
)
def test_what_can_never_be_served_is_refused(
    engine: Engine, request_: GenerateRequest, code: str, param: str | None
) -> None:
    refused = ask_all(engine, [request_])[0]
    assert isinstance(refused, InvalidRequest)
    assert (refused.code, refused.param) == (code, param)


def test_more_than_the_queue_holds_is_refused(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine(rows=2, waiting=3)
    answers = ask_all(engine, [order(PROMPT)] * 8)
    refused = [answer for answer in answers if isinstance(answer, GraftworkError)]
    assert [error.code for error in refused] == ["engine_overloaded"] * 3
    assert ask_all(engine, [order(PROMPT)])[0].reasons


def test_more_choices_than_there_ever_is_room_for_are_refused_for_good(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine(rows=2, waiting=3)
    fits, over = ask_all(engine, [order(PROMPT, n=5), order(PROMPT, n=6)])
    assert len(fits.reasons) == 5
    assert (type(over), over.param) == (InvalidRequest, "n")
    assert "holds 5 choices" in over.message


def test_one_tenant_leaves_room_for_others(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine(rows=2, waiting=6)
    flood = [msgspec.structs.replace(order(PROMPT), tenant="many") for _ in range(9)]
    other = msgspec.structs.replace(order(PROMPT), tenant="one")
    answers = ask_all(engine, [*flood, other])
    refused = [answer.code for answer in answers if isinstance(answer, GraftworkError)]
    assert refused == ["engine_overloaded"] * 2
    assert answers[-1].reasons
    assert engine._room.taken == 0


def test_what_is_embedded_is_tokenised_beside_the_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, threads = Renderer.encode, set[str]()

    def noted(self: Renderer, *given: Any, **options: Any) -> list[int]:
        threads.add(threading.current_thread().name)
        return encode(self, *given, **options)

    monkeypatch.setattr(Renderer, "encode", noted)
    inputs = [Input(text="one"), Input(text="and another")]
    assert len(asyncio.run(engine.embed(EmbedRequest(inputs=inputs))).vectors) == 2
    assert threads
    assert not [name for name in threads if not name.startswith("intake")]


@pytest.mark.parametrize(
    ("max_tokens", "said"), [(None, "none is left for an answer"), (1, "1 more were asked for")]
)
def test_who_asked_for_no_number_of_tokens_is_told_none(
    engine: Engine, max_tokens: int | None, said: str
) -> None:
    (refused,) = ask_all(engine, [order([5] * 256, max_tokens=max_tokens)])
    assert refused.message.endswith(f"the prompt has 256 tokens and {said}.")
