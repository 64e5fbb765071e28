"""A whole installation in a folder, for as long as a block lasts."""

import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import typer

from cli import programs
from cli.console import err, fail
from cli.environment import configure
from cli.supervise import kill_group, tail
from core.process import child_environment, start_child

READY_SECONDS = 300.0
STOP_SECONDS = 60.0


@contextmanager
def installation(folder: Path) -> Iterator[tuple[str, str]]:
    """Pull the base, run `graftwork serve` on a free port; yield its URL with /v1 and a key."""
    configure(data_dir=folder)
    _pull()
    key = f"gw-{secrets.token_urlsafe(24)}"
    log = folder / "serve.log"
    port = _free_port()
    command = [sys.executable, "-m", "cli", "serve", "--data-dir", str(folder)]
    child = start_child(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        environment={**programs.environment(), "GRAFTWORK_BOOTSTRAP_KEY": key},
        log=log,
    )
    try:
        with err.status("Starting database, broker, engine, worker and api …"):
            _wait_until_ready(child, url=f"http://127.0.0.1:{port}", log=log)
        yield f"http://127.0.0.1:{port}/v1", key
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            err.print("`graftwork serve` did not stop in time; killing it.")
        kill_group(child)
        child.wait()


def _pull() -> None:
    """Fetch the base through the cache that all data directories share; shows its own progress."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "pull"],
        env=child_environment(programs.environment()),
        check=False,
    )
    if done.returncode != 0:
        raise typer.Exit(done.returncode)


def _wait_until_ready(child: subprocess.Popen[bytes], *, url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    err.print(tail(log, lines=40), markup=False, style="dim")
    fail("`graftwork serve` did not become ready; its last words are above.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
