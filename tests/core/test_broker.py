import subprocess
import time
from pathlib import Path

import pytest

from core.broker import find_broker, server_command
from core.settings import Settings


def test_a_configured_broker_comes_first(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url="redis://somewhere/0")
    assert find_broker(settings).url == "redis://somewhere/0"
    assert find_broker(settings).server is None


def test_without_any_server_files_carry_the_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.broker.find_server", lambda: None)
    broker = find_broker(Settings(data_dir=tmp_path))
    assert broker.url == "filesystem://"
    assert (tmp_path / "broker" / "queue").is_dir()


def test_the_embedded_server_listens_on_a_private_socket_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    broker = find_broker(settings)
    assert broker.server
    server = subprocess.Popen(server_command(broker.server, settings=settings))
    socket = settings.socket_folder / "broker.sock"
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert socket.stat().st_mode & 0o077 == 0
        assert settings.socket_folder.stat().st_mode & 0o077 == 0
    finally:
        server.terminate()
        server.wait()


def test_deep_data_directories_get_a_short_socket_path(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    assert len(str(Settings(data_dir=deep).socket_folder / "engine.sock")) < 107
