"""How many may be connected to an api at once."""

import http.client
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
