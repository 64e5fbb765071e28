"""Connections of an api: how many at once, and where a request on one ends."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from migrations import migrate
from tests.api.conftest import Stack, run_stack

CRAMPED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from api.__main__ import main
main()
"""


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Stack]:
    """An installation whose api was started where few files may be open, as in a shell."""
    url = f"sqlite:///{tmp_path / 'graftwork.db'}"
    migrate(url)
    program = ("-c", CRAMPED)
    yield from run_stack(tmp_path, database_url=url, broker_url="redis://none", program=program)


def test_more_are_served_at_once_than_a_shell_lets_a_program_open_files(cramped: Stack) -> None:
    address = urlsplit(cramped.url).netloc
    with ExitStack() as stack:
        for _ in range(100):
            connection = http.client.HTTPConnection(address, timeout=5)
            stack.enter_context(closing(connection))
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b'{"status":"ok"}'


def test_nothing_is_read_behind_a_body_of_two_lengths(stack: Stack) -> None:
    address = urlsplit(stack.url)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), 5) as connection:
        connection.sendall(f"{head}0\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with connection.makefile("rb") as answers:
            said = answers.read()
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in said.lower()
    assert b'{"status":"ok"}' not in said
