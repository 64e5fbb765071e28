"""What routes ask for by type.

A session is not among them: a transaction that FastAPI opens for a route stays open while the
answer waits for a thread to be serialised in, and with all threads waiting for that transaction
to end, nothing moves. So routes say `with database.unit_of_work()` and end it before they return.
"""

from typing import Annotated, Literal

from fastapi import Depends, Query, Request

from api.engine_client import EngineClient
from api.keyed_route import require_tenant
from core.database import Database
from core.settings import Settings
from core.store import Store
from models.tables.base import Page


def get_settings(request: Request) -> Settings:
    """Return the settings of this application."""
    settings: Settings = request.app.state.settings
    return settings


def get_database(request: Request) -> Database:
    """Return the open database."""
    database: Database = request.app.state.database
    return database


def get_store(request: Request) -> Store:
    """Return the byte store."""
    store: Store = request.app.state.store
    return store


def get_engine(request: Request) -> EngineClient:
    """Return the client of the inference engine."""
    engine: EngineClient = request.app.state.engine
    return engine


SettingsDep = Annotated[Settings, Depends(get_settings)]
DatabaseDep = Annotated[Database, Depends(get_database)]
StoreDep = Annotated[Store, Depends(get_store)]
EngineDep = Annotated[EngineClient, Depends(get_engine)]
TenantDep = Annotated[str, Depends(require_tenant)]


After = Annotated[str | None, Query(max_length=255, description="The last id of the page before.")]


def read_page(after: After = None, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Page:
    """Return the page that a query asks for, newest first."""
    return Page(limit=limit, after=after)


def read_file_page(
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> Page:
    """Return the page of files that a query asks for, as long and in the order it wants."""
    return Page(limit=limit, after=after, ascending=order == "asc")


PageDep = Annotated[Page, Depends(read_page)]
FilePageDep = Annotated[Page, Depends(read_file_page)]
