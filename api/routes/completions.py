"""Chat and text completions: the name is looked up, then only the engine is asked."""

from collections.abc import AsyncGenerator

from fastapi import Response
from pydantic import BaseModel

from api.caller import CallerDep
from api.event_stream import EventStream
from api.keyed_route import keyed_router
from api.schemas.chat import ChatCompletion, ChatRequest
from api.schemas.sampling import SamplingRequest
from api.schemas.text import TextCompletion, TextRequest
from api.services import chat, text

router = keyed_router()


@router.post("/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatRequest, caller: CallerDep) -> Response:
    """Go on with a conversation."""
    request = chat.plan(body, await caller.find(body.model), limits=caller.limits)
    lines = caller.ask([request])
    if not body.stream:
        return _whole(await caller.wait(chat.collect(lines, body)))
    return _stream(chat.stream(await caller.admitted(lines), body), body)


@router.post("/completions", response_model=TextCompletion)
async def create_completion(body: TextRequest, caller: CallerDep) -> Response:
    """Go on with one or many texts."""
    requests = text.plan(body, await caller.find(body.model), limits=caller.limits)
    lines = caller.ask(requests)
    if not body.stream:
        return _whole(await caller.wait(text.collect(lines, body)))
    taken = await caller.admitted(lines, prompts=len(requests))
    return _stream(text.stream(taken, body), body)


def _whole(reply: str) -> Response:
    return Response(reply, media_type="application/json")


def _stream(chunks: AsyncGenerator[BaseModel], body: SamplingRequest) -> EventStream:
    return EventStream(chunks, show_null_usage=body.include_usage)
