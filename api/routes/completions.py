"""Chat and text completions: the name is looked up, then only the engine is asked."""

from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.deps import DatabaseDep, EngineDep, SettingsDep, TenantDep
from api.event_stream import EventStream, unless_gone
from api.keyed_route import keyed_router
from api.schemas.chat import ChatCompletion, ChatRequest
from api.schemas.sampling import SamplingRequest
from api.schemas.text import TextCompletion, TextRequest
from api.services import chat, text
from api.services.catalog import Target, find_target
from api.services.generation import Lines, admitted, generate
from models.spec import GenerateRequest

router = keyed_router()

ReplyT = TypeVar("ReplyT", bound=BaseModel)


class Caller:
    """Who calls, and what stands ready to answer; as long as the caller stays."""

    def __init__(
        self,
        request: Request,
        tenant: TenantDep,
        database: DatabaseDep,
        engine: EngineDep,
        settings: SettingsDep,
    ) -> None:
        self.limits = settings.limits
        self._receive = request.receive
        self._tenant = tenant
        self._database = database
        self._engine = engine
        self._settings = settings

    async def find(self, name: str) -> Target:
        """Return what a name stands for; the database is not touched again after this."""
        return await run_in_threadpool(self._find, name)

    def _find(self, name: str) -> Target:
        with self._database.reading() as session:
            return find_target(session, name, tenant=self._tenant, settings=self._settings)

    def ask(self, requests: Sequence[GenerateRequest]) -> Lines:
        """Return the engine's lines on these requests."""
        return generate(self._engine, requests)

    async def wait(self, reply: Coroutine[Any, Any, ReplyT]) -> ReplyT:
        """Return a reply, or stop the engine's work on it when the caller leaves."""
        return await unless_gone(reply, receive=self._receive)

    async def admitted(self, lines: Lines) -> Lines:
        """Wait until the engine has taken the request."""
        return await unless_gone(admitted(lines), receive=self._receive)


CallerDep = Annotated[Caller, Depends()]


@router.post("/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatRequest, caller: CallerDep) -> BaseModel | EventStream:
    """Go on with a conversation."""
    request = chat.plan(body, await caller.find(body.model), limits=caller.limits)
    lines = caller.ask([request])
    if not body.stream:
        return await caller.wait(chat.collect(lines, body))
    return _stream(chat.stream(await caller.admitted(lines), body), body)


@router.post("/completions", response_model=TextCompletion)
async def create_completion(body: TextRequest, caller: CallerDep) -> BaseModel | EventStream:
    """Go on with one or many texts."""
    requests = text.plan(body, await caller.find(body.model), limits=caller.limits)
    lines = caller.ask(requests)
    if not body.stream:
        return await caller.wait(text.collect(lines, body))
    return _stream(text.stream(await caller.admitted(lines), body), body)


def _stream(chunks: AsyncGenerator[BaseModel], body: SamplingRequest) -> EventStream:
    return EventStream(chunks, show_null_usage=body.include_usage)
