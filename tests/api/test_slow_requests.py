"""A connection is given up where no request comes on it, or no more of its body."""

import asyncio
from contextlib import suppress

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from api.connection import Connection

PATIENCE = 0.4
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
REST = b"GET / HTTP/1.1\r\nHost: x\r\nX-Rest: "


async def app(scope, receive, send):
    """Answer with the body: at once, or after a while, if the path says so."""
    body = b""
    if scope["path"] == "/late":
        await asyncio.sleep(3 * PATIENCE)
        scope["path"] = "/"
    while scope["path"] == "/" and (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def read(reader):
    """Return what comes until the end, or until the connection is reset."""
    said = b""
    with suppress(OSError):
        while piece := await reader.read(4096):
            said += piece
    return said


async def trickle(*pieces, then, seconds):
    """Send pieces, then one byte again and again; return what was answered, and if given up."""
    config = uvicorn.Config(
        app, http=Connection, port=0, log_config=None, lifespan="off", timeout_keep_alive=PATIENCE
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = asyncio.create_task(read(reader))
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05)
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(seconds):
            while not answered.done():
                writer.write(then)
                await asyncio.sleep(0.05)
    given_up = answered.done()
    writer.close()
    server.should_exit = True
    await serving
    return await answered, given_up


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        ((), 0),
        ((REST,), 0),
        ((HEAD, b"a", b"b", REST), 1),
        ((HEAD, b"ab" + HEAD, b"cd" + REST), 2),
        ((HEAD.replace(b"/ ", b"/early "), b"ab", REST), 1),
    ],
)
def test_a_head_that_trickles_in_is_given_up(pieces, answers):
    said, given_up = asyncio.run(trickle(*pieces, then=b"x" if pieces else b"", seconds=10))
    assert said.count(b"HTTP/1.1 200") == answers
    assert given_up


def test_a_body_may_take_longer():
    long = HEAD.replace(b": 2", b": 999")
    assert asyncio.run(trickle(long, then=b"x", seconds=5 * PATIENCE)) == (b"", False)


@pytest.mark.parametrize(("path", "answers"), [(b"/", 0), (b"/early", 1)])
def test_a_body_that_stops_is_given_up(path, answers):
    head = HEAD.replace(b"/ ", path + b" ", 1).replace(b": 2", b": 999")
    said, given_up = asyncio.run(trickle(head, b"a", b"b", then=b"", seconds=10))
    assert said.count(b"HTTP/1.1 200") == answers
    assert given_up


def test_a_body_that_is_not_taken_is_not_given_up():
    many = 8 * HIGH_WATER_LIMIT
    head = HEAD.replace(b"/ ", b"/late ", 1).replace(b": 2", b": %d" % many)
    said, _ = asyncio.run(trickle(head, b"x" * many, then=b"", seconds=6 * PATIENCE))
    assert said.startswith(b"HTTP/1.1 200")
