"""A real HTTP server that speaks the engine's protocol, for what no real engine does on demand.

What it does is chosen by the text it is given; anything else is answered with the text itself.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from models.spec import (
    GenerateDelta,
    GenerateEnd,
    GenerateError,
    GenerateRequest,
    GenerateStart,
    TokenChoice,
    TokenPiece,
)

REFUSALS = {
    "refuse": (400, "context_length_exceeded", "The prompt has 9 tokens; 8 fit."),
    "unknown": (404, "adapter_not_found", "No such adapter."),
    "overload": (503, "engine_overloaded", "Too many wait."),
}


class FakeEngine:
    """Listens on a Unix socket from a thread and remembers what it was asked."""

    def __init__(self, socket: Path) -> None:
        self.requests: list[GenerateRequest] = []
        self.dropped: list[str] = []
        self.cancelled = 0
        self.ready = True
        app = Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/health", self._health),
                Route("/adapters/{digest}", self._drop, methods=["DELETE"]),
            ]
        )
        config = uvicorn.Config(app, uds=str(socket), lifespan="off", log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop listening."""
        self._server.should_exit = True
        self._thread.join()

    async def _health(self, _request: Request) -> Response:
        return JSONResponse(
            {"ready": self.ready, "base": "tiny", "base_digest": "0" * 64, "rows": 0},
            status_code=200 if self.ready else 503,
        )

    async def _drop(self, request: Request) -> Response:
        self.dropped.append(request.path_params["digest"])
        return JSONResponse({"dropped": True})

    async def _generate(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=GenerateRequest)
        self.requests.append(asked)
        if asked.messages is not None:
            text = asked.messages[-1]["content"]
        else:
            text = (
                asked.prompt if asked.prompt is not None else " ".join(map(str, asked.prompt_ids))
            )
        if text in REFUSALS:
            status, code, message = REFUSALS[text]
            param = "messages" if status == 400 else None
            detail = {"code": code, "message": message, "param": param}
            return JSONResponse({"error": detail}, status_code=status)
        return StreamingResponse(self._lines(asked, text), media_type="application/x-ndjson")

    async def _lines(self, asked: GenerateRequest, text: str) -> AsyncIterator[bytes]:
        ended = False
        try:
            async for line in self._answer(asked, text):
                yield line if isinstance(line, bytes) else msgspec.json.encode(line) + b"\n"
            ended = True
        finally:
            self.cancelled += not ended

    async def _answer(self, asked: GenerateRequest, text: str):
        who = asked.adapter.digest[:4] if asked.adapter else "base"
        words = [f"[{who}]", *(f" {word}" for word in text.split())]
        yield GenerateStart(prompt_tokens=3)
        if text == "split":
            for spelled, shown in ((b"\xc3", ""), (b"\xbc", "\u00fc")):
                piece = TokenChoice(id=1, text="\ufffd", bytes=list(spelled), logprob=-0.5, top=[])
                yield GenerateDelta(index=0, text=shown, tokens=[piece])
        for index in range(asked.sampling["n"]):
            for word in words:
                yield GenerateDelta(index=index, text=word, tokens=[token(word)])
        if text == "flood":
            while True:
                await asyncio.sleep(0)
                yield GenerateDelta(index=0, text="x" * 4096)
        elif text == "stall":
            await asyncio.sleep(600)
        elif text == "break":
            yield GenerateError(status=500, code="engine_error", message="It broke.")
        elif text == "garbage":
            yield b"not json\n"
        elif text != "vanish":
            for index in range(asked.sampling["n"]):
                yield GenerateDelta(index=index, text="", finish_reason="stop")
            count = len(words) * asked.sampling["n"]
            yield GenerateEnd(prompt_tokens=3, completion_tokens=count)


def token(word: str) -> TokenChoice:
    """Return a token with two likeliest ones, of which one cannot be."""
    return TokenChoice(
        id=1,
        text=word,
        bytes=list(word.encode()),
        logprob=-0.5,
        top=[
            TokenPiece(id=1, text=word, bytes=list(word.encode()), logprob=-0.5),
            TokenPiece(id=2, text="no", bytes=[110, 111], logprob=-1e30),
        ],
    )
