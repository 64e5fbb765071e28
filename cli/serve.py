"""`graftwork serve`: the whole installation on one machine, in the foreground."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import typer

from cli import programs
from cli.banner import print_banner
from cli.console import err, fail, out
from cli.environment import DataDir, Host, Port, configure, make_folder
from cli.supervise import GaveUp, Program, Supervisor, rotate, tail
from core.process import child_environment

if TYPE_CHECKING:
    from core.broker import Broker
    from core.settings import Settings

READY_SECONDS = 300.0
PATIENCE_SECONDS = 20.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


def serve(data_dir: DataDir = None, host: Host = None, port: Port = None) -> None:
    """Run everything: database, broker, engine, worker and api. Ctrl-C stops it all."""
    os.umask(0o077)
    settings = configure(data_dir=data_dir, host=host, port=port)
    for folder in (settings.data_folder, settings.data_folder / "logs", settings.socket_folder):
        make_folder(folder)
    with _lock(settings.data_folder):
        settings = configure(port=_find_port(settings))
        _pull_missing_base(settings)
        _serve(settings)


def _serve(settings: "Settings") -> None:
    from cli import database
    from core.broker import find_broker

    database.migrate(settings)
    database.bootstrap(settings)
    os.environ.pop("GRAFTWORK_BOOTSTRAP_KEY", None)
    broker = find_broker(settings)
    parts = list(_plan(settings, broker))
    err.print(f"Starting {', '.join(part.name for part in parts)} …")
    try:
        with Supervisor(parts, say=lambda line: err.print(line, markup=False)) as supervisor:
            supervisor.run(until=_Readiness(address(settings), parts))
            if not supervisor.stopping:
                key = database.first_key(settings)
                print_banner(settings, address=address(settings), broker=broker, key=key)
            supervisor.run()
            err.print("Stopping … (Ctrl-C again stops at once)")
    except GaveUp as error:
        _show_log(error.program)
        fail(f"{error.reason}. The whole log: {error.program.log}")
    out.print("Stopped.")


def address(settings: "Settings") -> str:
    """Return the URL at which this machine reaches the api."""
    host = ANYWHERE.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _plan(settings: "Settings", broker: "Broker") -> Iterator[Program]:
    """Name the programs in the order in which they start; they stop the other way round."""
    from core.broker import server_command

    logs = settings.data_folder / "logs"
    plain = {**programs.environment(), "GRAFTWORK_HOST": settings.host}
    torch = {**plain, **programs.waiting()}

    if broker.server:
        command = server_command(broker.server, settings=settings)
        yield Program(
            "broker",
            [sys.executable, "-m", "cli.become", *command],
            log=rotate(logs / "broker.log"),
            environment=plain,
            disposable=settings.data_folder / "broker",
        )
    if not settings.engine_url:
        yield Program(
            "engine",
            programs.command("engine"),
            log=rotate(logs / "engine.log"),
            environment=torch,
        )
    yield Program(
        "worker",
        programs.command("worker"),
        log=rotate(logs / "worker.log"),
        environment=torch,
        grace_seconds=settings.worker.stop_seconds + 5.0,
    )
    yield Program("api", programs.command("api"), log=rotate(logs / "api.log"), environment=plain)


class _Readiness:
    """Asks `/readyz` until it says yes; explains a long wait once and gives up in the end."""

    def __init__(self, url: str, parts: list[Program]) -> None:
        self._url = f"{url}/readyz"
        self._parts = {part.name: part for part in parts}
        self._began = time.monotonic()
        self._next = 0.0
        self._explained = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 0.3
        try:
            answer = httpx.get(self._url, timeout=5.0, trust_env=False)
        except httpx.HTTPError:
            waiting = ["api"]
        else:
            if answer.status_code == 200:
                return True
            waiting = _failing(answer)
        names = ", ".join(waiting)
        if now - self._began > READY_SECONDS:
            culprit = next((name for name in waiting if name in self._parts), "api")
            raise GaveUp(self._parts[culprit], f"Not ready after {READY_SECONDS:.0f} s: {names}")
        if now - self._began > PATIENCE_SECONDS and not self._explained:
            self._explained = True
            err.print(f"Still waiting for: {names}", markup=False)
        return False


def _failing(answer: httpx.Response) -> list[str]:
    try:
        checks = answer.json()["checks"]
        return [name for name, check in checks.items() if not check["ok"]]
    except (ValueError, KeyError, TypeError):
        return ["api"]


def _find_port(settings: "Settings") -> int:
    """Return a port that can be bound: the wanted one, or any for 0."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                advice = f"another port: graftwork serve --port {settings.port + 1} (0 picks one)"
            else:
                advice = "an address of this machine: graftwork serve --host 127.0.0.1"
            fail(
                f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
                f"Choose {advice}."
            )
        port: int = probe.getsockname()[1]
        return port


def _pull_missing_base(settings: "Settings") -> None:
    import subprocess

    from core.bases import MANIFEST

    if (settings.base_folder / MANIFEST).is_file():
        return
    done = subprocess.run(
        [sys.executable, "-m", "cli", "pull", settings.base],
        env=child_environment(programs.environment()),
        check=False,
    )
    if done.returncode != 0:
        raise typer.Exit(done.returncode)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the data directory: two installations on one would fight over every file."""
    with (folder / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            fail(
                f"`graftwork serve` already runs on {folder} (process {lock.read().strip()}). "
                "Stop it, or choose another --data-dir."
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _show_log(program: Program) -> None:
    if last := tail(program.log):
        err.print(f"The last lines of {program.log}:", markup=False)
        err.print(last, markup=False, style="dim")
