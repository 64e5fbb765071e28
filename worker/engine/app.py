"""The engine's HTTP face, for the api and comparisons: answers, inspection, health, metrics."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from core.errors import GraftworkError, InvalidRequest
from models.wire import (
    AnyGenerateLine,
    ClassifyRequest,
    EmbedRequest,
    GenerateRequest,
    InspectRequest,
)
from worker.engine.engine import Engine

Lines = AsyncGenerator[AnyGenerateLine, None]
MessageT = TypeVar("MessageT", bound=msgspec.Struct)
ResultT = TypeVar("ResultT")


def create_app(engine: Engine) -> Starlette:
    """Return the application that serves one engine."""
    app = Starlette(
        routes=[
            Route("/generate", _generate, methods=["POST"]),
            Route("/embed", _embed, methods=["POST"]),
            Route("/classify", _classify, methods=["POST"]),
            Route("/inspect", _inspect, methods=["POST"]),
            Route("/health", _health),
            Route("/metrics", _metrics),
            Route("/adapters/{digest}", _drop, methods=["DELETE"]),
        ],
        exception_handlers={GraftworkError: _refuse, ClientDisconnect: _let_go},
    )
    app.state.engine = engine
    return app


async def _generate(request: Request) -> Response:
    """Stream a generation; wait for its first line, so that a refusal has a status of its own."""
    engine: Engine = request.app.state.engine
    lines = engine.generate(await _decode(request, GenerateRequest))
    try:
        first = await _unless_gone(request, anext(lines))
    except ClientDisconnect:
        await lines.aclose()
        raise
    return StreamingResponse(_encode(first, lines), media_type="application/x-ndjson")


async def _embed(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    return await _reply(request, engine.embed(await _decode(request, EmbedRequest)))


async def _classify(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    return await _reply(request, engine.classify(await _decode(request, ClassifyRequest)))


async def _inspect(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    order = await _decode(request, InspectRequest)
    return await _reply(request, engine.inspect(order.digest))


async def _reply(request: Request, working: Awaitable[msgspec.Struct]) -> Response:
    reply = await _unless_gone(request, working)
    return Response(msgspec.json.encode(reply), media_type="application/json")


async def _decode(request: Request, message: type[MessageT]) -> MessageT:
    try:
        return msgspec.json.decode(await request.body(), type=message)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body cannot be read: {error}.") from error


async def _unless_gone(request: Request, working: Awaitable[ResultT]) -> ResultT:
    """Return what is awaited; raises `ClientDisconnect` if the caller leaves before it is there."""
    result = asyncio.ensure_future(working)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        for task in (result, gone):
            task.cancel()
        await asyncio.gather(result, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _encode(first: AnyGenerateLine, lines: Lines) -> AsyncIterator[bytes]:
    encoder = msgspec.json.Encoder()
    async with aclosing(lines):
        yield encoder.encode(first) + b"\n"
        async for line in lines:
            yield encoder.encode(line) + b"\n"


async def _health(request: Request) -> Response:
    report = request.app.state.engine.health()
    return JSONResponse(report, status_code=200 if report["ready"] else 503)


async def _metrics(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    return Response(engine.metrics.render(engine.health()), media_type=CONTENT_TYPE_LATEST)


async def _drop(request: Request) -> Response:
    request.app.state.engine.drop(request.path_params["digest"])
    return Response(status_code=204)


async def _refuse(request: Request, error: Exception) -> Response:  # noqa: ARG001
    if not isinstance(error, GraftworkError):
        raise error
    body = {"code": error.code, "message": error.message, "param": error.param}
    return JSONResponse({"error": body}, status_code=error.status)


async def _let_go(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """End a call whose caller has left, be it amid its body: that is no fault of ours."""
    return Response(status_code=499)
