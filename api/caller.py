"""Who asks the engine through a route, and what stands ready to answer, while the caller stays."""

from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from api.deps import DatabaseDep, EngineDep, SettingsDep, TenantDep
from api.event_stream import unless_gone
from api.services.bases import find_shape
from api.services.catalog import Target, find_target
from api.services.generation import Lines, admitted, generate
from models.wire import GenerateRequest

ReplyT = TypeVar("ReplyT")


class Caller:
    """Looks a name up, then asks only the engine."""

    def __init__(
        self,
        request: Request,
        tenant: TenantDep,
        database: DatabaseDep,
        engine: EngineDep,
        settings: SettingsDep,
    ) -> None:
        self.engine = engine
        self.limits = settings.limits
        self._receive = request.receive
        self._tenant = tenant
        self._database = database
        self._settings = settings

    async def find(self, name: str) -> Target:
        """Return what a name stands for; the database is not touched again after this."""
        return await run_in_threadpool(self._find, name)

    def _find(self, name: str) -> Target:
        with self._database.reading() as session:
            return find_target(session, name, tenant=self._tenant, settings=self._settings)

    @property
    def hidden(self) -> int | None:
        """The base's hidden size; None where this process cannot see the base's folder."""
        shape = find_shape(self._settings)
        return shape.hidden if shape else None

    def ask(self, requests: Sequence[GenerateRequest]) -> Lines:
        """Return the engine's lines on these requests."""
        return generate(self.engine, requests)

    async def wait(self, reply: Coroutine[Any, Any, ReplyT]) -> ReplyT:
        """Return a reply, or stop the engine's work on it when the caller leaves."""
        return await unless_gone(reply, receive=self._receive)

    async def admitted(self, lines: Lines, *, prompts: int = 1) -> Lines:
        """Wait until the engine has taken the request, every prompt of it."""
        return await unless_gone(admitted(lines, prompts=prompts), receive=self._receive)


CallerDep = Annotated[Caller, Depends()]
