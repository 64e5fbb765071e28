"""The one internal HTTP call: from the api to the inference engine, over a Unix socket or TCP."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
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
PROBE_SECONDS = 2.0
JSON = {"content-type": "application/json"}

ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()
_lines = msgspec.json.Decoder(AnyGenerateLine)


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine says of itself."""

    ready: bool
    base: str
    base_digest: str
    dtype: str | None = None
    rows: int = 0
    waiting: int = 0
    resident: Sequence[dict[str, Any]] = ()


class EngineClient:
    """Speaks the engine's protocol; whatever keeps it from answering is `Unavailable`."""

    def __init__(self, address: str) -> None:
        over_socket = address.startswith("unix:")
        transport = httpx.AsyncHTTPTransport(
            uds=address.removeprefix("unix:") if over_socket else None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._client = httpx.AsyncClient(
            base_url="http://engine" if over_socket else address,
            transport=transport,
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[AsyncIterator[AnyGenerateLine]]:
        """Start a generation and give its lines; leaving the block early cancels it."""
        try:
            async with self._client.stream(
                "POST",
                "/generate",
                content=_encoder.encode(request),
                headers=JSON,
            ) as response:
                if response.status_code != httpx.codes.OK:
                    refusal = _refusal(response.status_code, await response.aread())
                    if request.messages is None and refusal.param == "messages":
                        refusal.param = "prompt"
                    raise refusal
                yield _read_lines(response)
        except httpx.HTTPError as error:
            raise _unavailable() from error

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Return the vectors of a few inputs."""
        return await self._ask("/embed", request, reply=EmbedReply)

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Return the scores of a few inputs."""
        return await self._ask("/classify", request, reply=ClassifyReply)

    async def inspect(self, request: InspectRequest) -> InspectReply:
        """Return what the engine finds in a stored adapter."""
        return await self._ask("/inspect", request, reply=InspectReply)

    async def health(self) -> EngineHealth:
        """Return the engine's own report, ready or not."""
        try:
            response = await self._client.get("/health", timeout=PROBE_SECONDS)
            return msgspec.json.decode(response.content, type=EngineHealth)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise _unavailable() from error

    async def drop(self, digest: str) -> None:
        """Ask the engine to forget an adapter that nobody can name any more."""
        try:
            await self._client.delete(f"/adapters/{digest}", timeout=PROBE_SECONDS)
        except httpx.HTTPError as error:
            raise _unavailable() from error

    async def _ask(self, path: str, request: msgspec.Struct, *, reply: type[ReplyT]) -> ReplyT:
        """Send one message and decode the answer; giving up closes the connection."""
        try:
            content = _encoder.encode(request)
            response = await self._client.post(path, content=content, headers=JSON)
            if response.status_code != httpx.codes.OK:
                raise _refusal(response.status_code, response.content)
            return msgspec.json.decode(response.content, type=reply)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise _unavailable() from error


async def _read_lines(response: httpx.Response) -> AsyncIterator[AnyGenerateLine]:
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line:
                continue
            message = _decode(line)
            if isinstance(message, GenerateError):
                raise Refused(message.message, status=message.status, code=message.code)
            yield message


def _decode(line: bytes) -> AnyGenerateLine:
    try:
        message: AnyGenerateLine = _lines.decode(line)
    except msgspec.DecodeError as error:
        raise _unavailable() from error
    return message


def _refusal(status: int, content: bytes) -> Refused | Unavailable:
    try:
        detail = msgspec.json.decode(content)["error"]
        return Refused(
            detail["message"], status=status, code=detail["code"], param=detail.get("param")
        )
    except (msgspec.DecodeError, KeyError, TypeError):
        return _unavailable()


def _unavailable() -> Unavailable:
    return Unavailable(
        "The inference engine does not answer; try again in a moment.", code="engine_unavailable"
    )
