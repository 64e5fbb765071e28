"""Server-sent events that end when the reader is gone, and requests that are watched for that."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import structlog
from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from api.errors import envelope
from core.errors import GraftworkError

SEND_SECONDS = 60.0
"""How long a reader may take nothing before it counts as gone."""

ResultT = TypeVar("ResultT")

log = structlog.get_logger(__name__)


class ReaderGone(GraftworkError):
    """Nobody waits for the answer any more."""

    status = 499
    code = "client_closed_request"
    type = "invalid_request_error"


class EventStream(Response):
    """Sends chunks as `data:` events, then `[DONE]`; an error on the way is the last event.

    Whatever ends it, the chunks' generator is closed before this returns, and with it the
    engine's work on them.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[BaseModel], *, show_null_usage: bool) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._hidden = None if show_null_usage else {"usage"}

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the reader is gone."""
        async with aclosing(self._chunks):
            try:
                await unless_gone(self._send_all(send), receive=receive)
            except (ReaderGone, TimeoutError, OSError):
                log.info("reader gone")

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            async for chunk in self._chunks:
                await _send_event(send, chunk.model_dump_json(exclude=self._hidden))
            await _send_event(send, "[DONE]")
        except GraftworkError as error:
            await _send_event(send, envelope(error).model_dump_json())
        await send({"type": "http.response.body", "body": b""})


async def _send_event(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def unless_gone(work: Coroutine[Any, Any, ResultT], *, receive: Receive) -> ResultT:
    """Await `work`, but cancel it and raise `ReaderGone` as soon as the client disconnects."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ReaderGone("The client went away.")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
