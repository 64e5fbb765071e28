"""Connections of an api: how many at once, and where a request on one ends."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from migrations import migrate
from tests.api.conftest import Stack, run_stack
from tests.processes import wait_for

CRAMPED = """
import resource
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {most}))
from api.__main__ import main
main()
"""


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Stack]:
    """An installation whose api was started where few files may be open, as in a shell."""
    yield from run_cramped(tmp_path, most="most")


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Stack]:
    """An installation whose api may not have more of them open."""
    yield from run_cramped(tmp_path, most="64")


def run_cramped(tmp_path: Path, *, most: str) -> Iterator[Stack]:
    url = f"sqlite:///{tmp_path / 'graftwork.db'}"
    migrate(url)
    program = ("-c", CRAMPED.format(most=most))
    yield from run_stack(tmp_path, database_url=url, broker_url="redis://none", program=program)


def test_more_are_served_at_once_than_a_shell_lets_a_program_open_files(cramped: Stack) -> None:
    address = urlsplit(cramped.url).netloc
    with ExitStack() as stack:
        for _ in range(100):
            connection = http.client.HTTPConnection(address, timeout=5)
            stack.enter_context(closing(connection))
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b'{"status":"ok"}'


def test_where_no_more_files_may_be_open_the_log_says_so_now_and_then(confined: Stack) -> None:
    address = urlsplit(confined.url)

    def told() -> int:
        return confined.log.read_text().count("socket.accept() out of system resource")

    with ExitStack() as stack:
        for _ in range(100):
            there = address.hostname or "", address.port or 0
            stack.enter_context(socket.create_connection(there, 5))
        wait_for(told, seconds=20)
        time.sleep(2.5)  # it tries again every second
        assert told() == 1
    wait_for(lambda: httpx.get(f"{confined.url}/livez", timeout=5).is_success, seconds=20)


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
