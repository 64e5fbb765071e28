"""A real HTTP server that speaks the engine's protocol, for what no real engine does on demand.

What it does is chosen by the text it is given; anything else is answered with the text itself.
"""

import asyncio
import struct
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

from models.wire import (
    ClassifyReply,
    ClassifyRequest,
    EmbedReply,
    EmbedRequest,
    GenerateDelta,
    GenerateEnd,
    GenerateError,
    GenerateOpened,
    GenerateRequest,
    GenerateStart,
    Input,
    InspectReply,
    InspectRequest,
    TokenChoice,
    TokenPiece,
)

REFUSALS = {
    "refuse": (400, "context_length_exceeded", "The prompt has 9 tokens; 8 fit."),
    "unknown": (404, "adapter_not_found", "No such adapter."),
    "overload": (503, "engine_overloaded", "Too many wait."),
    "refuse late": (400, "context_length_exceeded", "The prompt has 9 tokens; 8 fit."),
}
NAMED = "refuse by name"
"""Refused as what cannot be read, by its place in the batch."""
FITS = InspectReply(
    method={
        "type": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.0,
        "target_modules": "all-linear", "use_rslora": False,
    },
    parameters=100,
    matched=["one", "two"],
)  # fmt: skip


class FakeEngine:
    """Listens on a Unix socket from a thread and remembers what it was asked."""

    def __init__(self, socket: Path) -> None:
        self.requests: list[GenerateRequest] = []
        self.read: list[EmbedRequest | ClassifyRequest] = []
        self.inspected: list[str] = []
        self.finding: InspectReply | None = FITS
        """What it says of adapters; None: it does not answer."""
        self.dropped: list[str] = []
        self.cancelled = 0
        self.ready = True
        app = Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/embed", self._embed, methods=["POST"]),
                Route("/classify", self._classify, methods=["POST"]),
                Route("/inspect", self._inspect, methods=["POST"]),
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
        if self.ready:
            return JSONResponse({"ready": True, "base": "tiny", "base_digest": "0" * 64, "rows": 0})
        return JSONResponse({"ready": False}, status_code=503)  # the base is being loaded

    async def _drop(self, request: Request) -> Response:
        self.dropped.append(request.path_params["digest"])
        return JSONResponse({"dropped": True})

    async def _embed(self, request: Request) -> Response:
        """Answer a text with its length and its first letter, or ids with their sum and zero."""
        asked = msgspec.json.decode(await request.body(), type=EmbedRequest)
        self.read.append(asked)
        if refused := await refusal(request, asked.inputs):
            return refused
        vectors = [
            struct.pack(
                "<8f", *(sum(i.ids), 0) if i.ids else (len(i.text), ord(i.text[0])), *[0] * 6
            )
            for i in asked.inputs
        ]
        tokens = [len(i.ids or i.text) for i in asked.inputs]
        return encoded(EmbedReply(vectors=vectors, tokens=tokens))

    async def _classify(self, request: Request) -> Response:
        """Score label k of n by (k + 1) / sum, turned around for what a user wrote as `turn`."""
        asked = msgspec.json.decode(await request.body(), type=ClassifyRequest)
        self.read.append(asked)
        if refused := await refusal(request, asked.inputs):
            return refused
        labels = asked.labels or ["ham", "spam"]
        whole = len(labels) * (len(labels) + 1) / 2
        up = [(number + 1) / whole for number in range(len(labels))]
        scores = [up[::-1] if text_of(i) == "turn" else up for i in asked.inputs]
        return encoded(ClassifyReply(labels=labels, scores=scores, tokens=[2] * len(scores)))

    async def _inspect(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=InspectRequest)
        self.inspected.append(asked.digest)
        if self.finding is None:
            detail = {"code": "engine_loading", "message": "Wait.", "param": None}
            return JSONResponse({"error": detail}, status_code=503)
        return encoded(self.finding)

    async def _generate(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=GenerateRequest)
        self.requests.append(asked)
        if asked.messages is not None:
            text = asked.messages[-1]["content"]
        else:
            text = (
                asked.prompt if asked.prompt is not None else " ".join(map(str, asked.prompt_ids))
            )
        if text == "refuse late":
            await asyncio.sleep(0.3)
        if text in REFUSALS:
            return refuse(text)
        return StreamingResponse(self._lines(asked, text), media_type="application/x-ndjson")

    async def _lines(self, asked: GenerateRequest, text: str) -> AsyncIterator[bytes]:
        ended = False
        try:
            yield msgspec.json.encode(GenerateOpened()) + b"\n"
            if text == "queue":
                await asyncio.sleep(600)
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
            for spelled, shown in ((b"\xc3", ""), (b"\xbc", "\u00fc"), (b"<|end|>", "")):
                piece = TokenChoice(
                    id=1,
                    text=spelled.decode(errors="replace"),
                    bytes=list(spelled),
                    logprob=-0.5,
                    silent=spelled == b"<|end|>",
                )
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
            worth = (2, 1) if asked.prediction else (0, 0)
            yield GenerateEnd(
                prompt_tokens=3,
                completion_tokens=count,
                accepted_tokens=worth[0],
                rejected_tokens=worth[1],
            )


def refuse(text: str, *, param: str = "messages") -> Response:
    """Return the refusal that a text asks for."""
    status, code, message = REFUSALS[text]
    detail = {"code": code, "message": message, "param": param if status == 400 else None}
    return JSONResponse({"error": detail}, status_code=status)


async def refusal(request: Request, inputs: list[Input]) -> Response | None:
    """Return the refusal that one of the texts asks for; `stall` waits until nobody asks."""
    texts = [text_of(item) for item in inputs]
    while "stall" in texts and not await request.is_disconnected():  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.02)
    if NAMED in texts:
        return refuse("refuse", param=f"inputs[{texts.index(NAMED)}]")
    return next((refuse(text) for text in texts if text in REFUSALS), None)


def text_of(item: Input) -> str | None:
    """Return what was said last."""
    return item.messages[-1]["content"] if item.messages else item.text


def encoded(reply: msgspec.Struct) -> Response:
    """Return a message as a response."""
    return Response(msgspec.json.encode(reply), media_type="application/json")


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
