"""Runs one engine as a process: its socket, its signals, its exit code."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from core.leftovers import remove_stale
from core.settings import Settings
from worker.engine.app import create_app
from worker.engine.engine import Engine

GRACE_SECONDS = 2.0
"""What runs when the process is told to stop may go on for so long; then it gets an error."""

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers alone."""
        yield


def serve(settings: Settings) -> int:
    """Serve until told to stop; returns the exit code, 1 if the torch thread died."""
    remove_stale(settings.uploads_folder)
    with _listen(settings.engine_address) as listener:
        return asyncio.run(_serve(settings, listener))


async def _serve(settings: Settings, listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    died = asyncio.Event()

    def tell_death() -> None:
        loop.call_soon_threadsafe(died.set)
        loop.call_soon_threadsafe(stop.set)

    engine = Engine(settings, died=tell_death)
    config = uvicorn.Config(
        create_app(engine),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await stop.wait()
    await _stop(engine)
    server.should_exit = True
    await serving
    return 1 if died.is_set() else 0


async def _stop(engine: Engine) -> None:
    """Let what runs end by itself for a while, then end it with an error."""
    engine.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            while engine.busy:  # noqa: ASYNC110 - requests belong to no one event
                await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.close)


def _interface(host: str) -> str:
    """Return what to listen at for callers of `host`: itself if no other machine can reach it."""
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return "0.0.0.0"  # noqa: S104 - a name: that of a container, say
    if address.is_loopback:
        return str(address)
    return "::" if address.version == 6 else "0.0.0.0"  # noqa: S104


@contextlib.contextmanager
def _listen(address: str) -> Iterator[socket.socket]:
    """Listen at `unix:/path`, for this user only, or at the port of `http://host:port`.

    A socket file gets its name once it accepts callers, in place of one that a killed engine left.
    `OSError` where another engine listens.
    """
    if not address.startswith("unix:"):
        url = urlsplit(address)
        host = _interface(url.hostname or "localhost")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        place = (host, 80 if url.port is None else url.port)
        with socket.create_server(place, family=family, backlog=_BACKLOG) as listener:
            yield listener
        return
    path = Path(address.removeprefix("unix:"))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    _refuse_taken(path)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(str(fresh))
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        own = fresh.stat()
        fresh.replace(path)
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), own):
                    path.unlink()


def _refuse_taken(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, "another engine listens there", str(path))
