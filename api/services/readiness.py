"""Use case: say whether this installation can do its work, and if not, what is missing."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import NamedTuple

import structlog
from anyio import to_thread

from api.engine_client import EngineClient
from api.schemas.health import Check, Readiness
from core.bases import read_manifest
from core.broker import check_broker, find_broker
from core.database import Database
from core.errors import GraftworkError, Unavailable
from core.settings import Settings
from core.store import Store
from models.tables import api_key

SECONDS = 3.0

log = structlog.get_logger(__name__)


class Parts(NamedTuple):
    """What is looked at."""

    settings: Settings
    database: Database
    store: Store
    engine: EngineClient


async def check_readiness(parts: Parts) -> Readiness:
    """Look at everything at once, each for a short time."""
    checks: dict[str, tuple[Callable[[Parts], Awaitable[None]], bool]] = {
        "database": (_in_thread(_database), True),
        "migrations": (_in_thread(_migrations), True),
        "store": (_in_thread(_store), True),
        "broker": (_in_thread(_broker), False),
        "engine": (_engine, True),
        "base": (_in_thread(_base), True),
    }
    found = await asyncio.gather(
        *(_run(look, parts, required=required) for look, required in checks.values())
    )
    ready = all(check.ok for check in found if check.required)
    return Readiness(
        status="ready" if ready else "not_ready", checks=dict(zip(checks, found, strict=True))
    )


async def _run(look: Callable[[Parts], Awaitable[None]], parts: Parts, *, required: bool) -> Check:
    started = perf_counter()
    detail = None
    try:
        async with asyncio.timeout(SECONDS):
            await look(parts)
    except TimeoutError:
        detail = f"No answer in {SECONDS:g} seconds."
    except GraftworkError as error:
        detail = error.message
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a reason not to be ready
        log.warning("readiness check failed", error=type(error).__name__)
        detail = "Does not answer; the log has the kind of error."
    milliseconds = round((perf_counter() - started) * 1000, 1)
    return Check(ok=detail is None, required=required, detail=detail, milliseconds=milliseconds)


def _in_thread(look: Callable[[Parts], None]) -> Callable[[Parts], Awaitable[None]]:
    """Run a blocking look in a thread that is left behind when it takes too long."""

    async def run(parts: Parts) -> None:
        await to_thread.run_sync(look, parts, abandon_on_cancel=True)

    return run


def _database(parts: Parts) -> None:
    with parts.database.reading() as session:
        api_key.count(session)


def _migrations(parts: Parts) -> None:
    from migrations import is_current  # Alembic takes a while to import

    if not is_current(parts.database.engine):
        raise Unavailable("The schema is not at this version's; run `graftwork migrate`.")


def _store(parts: Parts) -> None:
    parts.store.check()


def _broker(parts: Parts) -> None:
    check_broker(find_broker(parts.settings))


async def _engine(parts: Parts) -> None:
    health = await parts.engine.health()
    if health.base not in (None, parts.settings.base):
        raise Unavailable(f"The engine serves {health.base!r}, not {parts.settings.base!r}.")
    if not health.ready:
        raise Unavailable("The engine is not ready yet.")


def _base(parts: Parts) -> None:
    read_manifest(parts.settings.base_folder)
