"""The worker's way to the inference engine: ask, and wait while it restarts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

import httpx
import msgspec

from core.errors import GraftworkError, Unavailable
from models.wire import (
    AnyGenerateLine,
    ClassifyReply,
    ClassifyRequest,
    GenerateDelta,
    GenerateError,
    GenerateRequest,
)

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0
AWAY_SECONDS = 60.0
"""For how long an engine that is away is waited for: it restarts within this time."""
PAUSE_SECONDS = 1.0

ReplyT = TypeVar("ReplyT")
Check = Callable[[], None]

_encoder = msgspec.json.Encoder()
_lines = msgspec.json.Decoder(AnyGenerateLine)


class EngineRefused(GraftworkError):
    """The engine cannot do what was asked, now or later."""


class EngineClient:
    """Speaks the engine's protocol over a Unix socket or TCP; safe to use from many threads.

    `check` is called all the time; what it raises ends whatever goes on.
    """

    def __init__(self, address: str, *, check: Check) -> None:
        over_socket = address.startswith("unix:")
        self._check = check
        self._client = httpx.Client(
            base_url="http://engine" if over_socket else address,
            transport=httpx.HTTPTransport(
                uds=address.removeprefix("unix:") if over_socket else None,
                limits=httpx.Limits(max_connections=None),
            ),
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def generate(self, request: GenerateRequest) -> str:
        """Return the text of one answer."""
        return self._patiently(lambda: self._generate(request))

    def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Return the labels and their scores for each input."""
        return self._patiently(lambda: self._classify(request))

    def _generate(self, request: GenerateRequest) -> str:
        pieces: list[str] = []
        with self._post("/generate", _encoder.encode(request)) as response:
            for line in _split(response):
                self._check()
                message = _lines.decode(line)
                if isinstance(message, GenerateError):
                    raise _error(message.status, code=message.code, message=message.message)
                if isinstance(message, GenerateDelta):
                    pieces.append(message.text)
        return "".join(pieces)

    def _classify(self, request: ClassifyRequest) -> ClassifyReply:
        with self._post("/classify", _encoder.encode(request)) as response:
            return msgspec.json.decode(response.read(), type=ClassifyReply)

    @contextmanager
    def _post(self, path: str, content: bytes) -> Iterator[httpx.Response]:
        headers = {"content-type": "application/json"}
        try:
            with self._client.stream("POST", path, content=content, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, response.read())
                yield response
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise _away() from error

    def _patiently(self, ask: Callable[[], ReplyT]) -> ReplyT:
        """Ask again while the engine is away, up to a limit."""
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            self._check()
            try:
                return ask()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_SECONDS)


def _split(response: httpx.Response) -> Iterator[bytes]:
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, lines)


def _refusal(status: int, content: bytes) -> GraftworkError:
    try:
        detail = msgspec.json.decode(content)["error"]
        return _error(status, code=detail["code"], message=detail["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return EngineRefused(f"The engine answered {status}.")


def _error(status: int, *, code: str, message: str) -> GraftworkError:
    """Tell what may pass later from what will not."""
    kind = Unavailable if status == httpx.codes.SERVICE_UNAVAILABLE else EngineRefused
    return kind(message, code=code)


def _away() -> Unavailable:
    return Unavailable("The inference engine does not answer.", code="engine_unavailable")
