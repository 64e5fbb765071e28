"""The application: what is opened at the start, which routes there are."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from api import errors
from api.engine_client import EngineClient
from api.metrics import Metrics
from api.observer import Observer
from api.routes import adapters, catalog, comparisons, completions, files, health, jobs, readings
from core.database import Database
from core.leftovers import remove_stale
from core.settings import Settings, get_settings
from core.store import Store


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; nothing is opened before its lifespan begins."""
    settings = settings or get_settings()
    metrics = Metrics()
    app = FastAPI(
        title="Graftwork",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.add_middleware(Observer, metrics=metrics)
    errors.add_handlers(app)
    for resource in (health, files, jobs, comparisons, adapters, catalog, completions, readings):
        app.include_router(resource.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    app.state.database = Database(settings.database)
    app.state.store = Store(settings.store)
    app.state.engine = EngineClient(settings.engine_address)
    remove_stale(settings.uploads_folder)
    gc.collect()
    gc.freeze()  # or what was loaded would be looked through again and again, amid streams
    try:
        yield
    finally:
        gc.unfreeze()
        await app.state.engine.close()
        app.state.database.close()


def _version() -> str:
    try:
        return version("graftwork")
    except PackageNotFoundError:
        return "0"
