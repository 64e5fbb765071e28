"""The one internal HTTP call of the api: to the inference engine, over a Unix socket or TCP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from io import BytesIO
from typing import TypeVar

import aiohttp
import msgspec

from api.errors import Refused
from core.errors import Unavailable
from models.wire import (
    AnyGenerateLine,
    ClassifyReply,
    ClassifyRequest,
    EmbedReply,
    EmbedRequest,
    GenerateError,
    GenerateRequest,
    InspectReply,
    InspectRequest,
)

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0
IDLE_SECONDS = 3.0
"""Less than uvicorn keeps a connection (5 s), so that none is used as the engine closes it."""
LOOKED_UP_SECONDS = 1
"""For how long a host's address counts: an engine that is made anew has another."""
PROBE = aiohttp.ClientTimeout(total=2.0)
JSON = {"content-type": "application/json"}
FAILURES = (aiohttp.ClientError, TimeoutError, msgspec.DecodeError)

ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()
_lines = msgspec.json.Decoder(AnyGenerateLine)


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine says of itself."""

    ready: bool
    base: str | None = None
    """None while it is being loaded."""


class EngineClient:
    """Speaks the engine's protocol; whatever keeps it from answering is `Unavailable`.

    That is also what those are told who still wait when it is closed.
    """

    def __init__(self, address: str) -> None:
        """Open no connection yet; there must be a running event loop."""
        url, connector = _way_to(address)
        self._session = aiohttp.ClientSession(
            url,
            connector=connector,
            timeout=aiohttp.ClientTimeout(connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._calls: set[asyncio.Timeout] = set()
        self._closing = False

    async def close(self) -> None:
        """End every call and close every connection."""
        self._closing = True
        for call in self._calls:
            call.reschedule(0)
        self._calls.clear()
        await self._session.close()

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[AsyncIterator[AnyGenerateLine]]:
        """Start a generation and give its lines; leaving the block early cancels it."""
        async with self._call(), self._post("generate", request) as response:
            if response.status != HTTPStatus.OK:
                refusal = self._refusal(response.status, await _read(response))
                if request.messages is None and refusal.param == "messages":
                    refusal.param = "prompt"
                raise refusal
            yield _read_lines(response)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Return the vectors of a few inputs."""
        return await self._ask("embed", request, reply=EmbedReply)

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Return the scores of a few inputs."""
        return await self._ask("classify", request, reply=ClassifyReply)

    async def inspect(self, request: InspectRequest) -> InspectReply:
        """Return what the engine finds in a stored adapter."""
        return await self._ask("inspect", request, reply=InspectReply)

    async def health(self) -> EngineHealth:
        """Return the engine's own report, ready or not."""
        async with self._call(), self._session.get("health", timeout=PROBE) as response:
            return msgspec.json.decode(await response.read(), type=EngineHealth)

    async def drop(self, digest: str) -> None:
        """Ask the engine to forget an adapter that nobody can name any more."""
        async with self._call(), self._session.delete(f"adapters/{digest}", timeout=PROBE):
            pass

    async def _ask(self, path: str, request: msgspec.Struct, *, reply: type[ReplyT]) -> ReplyT:
        """Send one message and decode the answer; giving up closes the connection."""
        async with self._call():
            async with self._post(path, request) as response:
                answer = await _read(response)
            if response.status != HTTPStatus.OK:
                raise self._refusal(response.status, answer)
            return msgspec.json.decode(answer, type=reply)

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Turn what goes wrong in the block into `Unavailable`; `close` ends it by a timeout."""
        if self._closing:
            raise self._unavailable()
        try:
            async with asyncio.timeout(None) as call:
                self._calls.add(call)
                try:
                    yield
                finally:
                    self._calls.discard(call)
        except FAILURES as error:
            raise self._unavailable() from error

    def _post(
        self, path: str, request: msgspec.Struct
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        content = BytesIO(_encoder.encode(request))
        return self._session.post(path, data=content, headers=JSON, allow_redirects=False)

    def _refusal(self, status: int, content: bytes) -> Refused | Unavailable:
        try:
            detail = msgspec.json.decode(content)["error"]
            return Refused(
                detail["message"], status=status, code=detail["code"], param=detail.get("param")
            )
        except (msgspec.DecodeError, KeyError, TypeError):
            return self._unavailable()

    def _unavailable(self) -> Unavailable:
        if self._closing:
            return Unavailable(
                "This server is stopping; try again in a moment.", code="server_stopping"
            )
        return Unavailable(
            "The inference engine does not answer; try again in a moment.",
            code="engine_unavailable",
        )


def _way_to(address: str) -> tuple[str, aiohttp.BaseConnector]:
    """Return the URL that paths are relative to, and what connects."""
    path = address.removeprefix("unix:")
    if path != address:
        unix = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=IDLE_SECONDS)
        return "http://engine", unix
    tcp = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=LOOKED_UP_SECONDS
    )
    return f"{address.rstrip('/')}/", tcp


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return the whole body; aiohttp by itself waits for ever for the rest of a garbled one."""
    async with asyncio.timeout(SILENCE_SECONDS):
        return await response.read()


async def _read_lines(response: aiohttp.ClientResponse) -> AsyncIterator[AnyGenerateLine]:
    rest = b""
    while piece := await _read_piece(response):
        *lines, rest = (rest + piece).split(b"\n")
        for line in filter(None, lines):
            message: AnyGenerateLine = _lines.decode(line)
            if isinstance(message, GenerateError):
                raise Refused(message.message, status=message.status, code=message.code)
            yield message


async def _read_piece(response: aiohttp.ClientResponse) -> bytes:
    """Return what has come since the last piece; nothing at the end. See `_read`."""
    async with asyncio.timeout(SILENCE_SECONDS):
        return await response.content.readany()
