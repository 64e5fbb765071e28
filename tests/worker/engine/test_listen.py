"""Where the engine listens, by the address that others call it at."""

from pathlib import Path

import pytest

from worker.engine.serve import _interface, _listen


@pytest.mark.parametrize(
    ("called_at", "heard_at"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("engine", "0.0.0.0"),
        ("10.1.2.3", "0.0.0.0"),
        ("fd00::1", "::"),
    ],
)
def test_who_is_called_on_this_machine_alone_listens_there_alone(
    called_at: str, heard_at: str
) -> None:
    assert _interface(called_at) == heard_at


def test_the_port_is_that_of_the_address() -> None:
    with _listen("http://127.0.0.1:0") as free:
        port = free.getsockname()[1]
    with _listen(f"http://127.0.0.1:{port}") as listener:
        assert listener.getsockname() == ("127.0.0.1", port)


def test_a_socket_belongs_to_the_engine_that_listens_at_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "engine.sock"
    with _listen(f"unix:{path}"):
        with pytest.raises(OSError, match="another engine"), _listen(f"unix:{path}"):
            pass
        path.unlink()
        path.touch()  # another's by now
    assert path.exists()
    with _listen(f"unix:{path}"):  # as one that was killed leaves it
        pass
    assert not path.exists()
