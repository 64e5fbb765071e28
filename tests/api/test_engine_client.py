"""The way from the api to the engine where what answers is no engine, or a broken one."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

import api.engine_client
from api.engine_client import EngineClient
from core.errors import Unavailable
from models.wire import EmbedRequest, GenerateRequest, GenerateStart, Input

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LINE = b'{"type":"start","prompt_tokens":3}\n'
FIRST = b"%x\r\n%s\r\n" % (len(LINE), LINE)
READ = GenerateRequest(prompt="a", sampling={})


@asynccontextmanager
async def answering(*answer: bytes, path: str = "") -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve the same pieces to every caller; yield where, and the heads of what was asked."""
    heads: list[bytes] = []
    done = asyncio.Event()

    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        with suppress(ConnectionError):
            for piece in answer:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)  # so that it arrives by itself
            writer.close()
            await writer.wait_closed()
        done.set()

    server = await asyncio.start_server(answer_one, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}", heads
        if heads:
            await done.wait()


async def lines_from(url: str) -> list[object]:
    client, lines = EngineClient(url), []
    try:
        async with client.generate(READ) as answer:
            async for line in answer:
                lines.append(line)  # noqa: PERF401 - those before a failure count too
    except Unavailable:
        lines.append(None)
    finally:
        await client.close()
    return lines


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (b"zz\r\nno chunk\r\n", [None]),
        (b"40\r\ncut short", [None]),
        (b"3\r\n{}\n\r\n0\r\n\r\n", [None]),
        (b"5\r\nno js\r\n0\r\n\r\n", []),
    ],
    ids=["garbled", "cut", "no line of ours", "no whole line"],
)
def test_what_breaks_in_mid_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, end: bytes, told: list[None]
) -> None:
    monkeypatch.setattr(api.engine_client, "SILENCE_SECONDS", 0.5)

    async def ask() -> list[object]:
        async with answering(HEAD + FIRST, end) as (url, _):
            return await lines_from(url)

    assert asyncio.run(ask()) == [GenerateStart(prompt_tokens=3), *told]


def test_nobody_is_sent_elsewhere_with_a_prompt() -> None:
    async def ask() -> tuple[list[object], list[bytes]]:
        async with answering(HEAD + b"0\r\n\r\n") as (elsewhere, asked):
            moved = f"HTTP/1.1 307 Moved\r\nlocation: {elsewhere}/generate\r\n\r\n".encode()
            async with answering(moved) as (url, _):
                return await lines_from(url), asked

    assert asyncio.run(ask()) == ([None], [])


@pytest.mark.parametrize(
    ("path", "asked"), [("", "/embed"), ("/", "/embed"), ("/a/b", "/a/b/embed")]
)
def test_an_address_may_have_a_path(path: str, asked: str) -> None:
    async def ask() -> list[bytes]:
        async with answering(b"HTTP/1.1 500 No\r\n\r\n", path=path) as (url, heads):
            client = EngineClient(url)
            with pytest.raises(Unavailable):
                await client.embed(EmbedRequest(inputs=[Input(text="a")]))
            await client.close()
            return heads

    (head,) = asyncio.run(ask())
    assert re.match(rf"POST {asked} HTTP/1.1\r\n".encode(), head)
