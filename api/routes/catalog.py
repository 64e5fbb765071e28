"""What can be called (`/v1/models`) and how it can be tuned (`/v1/methods`)."""

from contextlib import suppress

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from api.deps import DatabaseDep, EngineDep, SettingsDep, TenantDep
from api.keyed_route import keyed_router
from api.schemas.catalog import MethodCard, ModelCard
from api.schemas.common import Deletion, Listing, list_items
from api.services import catalog
from api.services.methods import list_methods
from core.database import Database
from core.errors import Unavailable
from core.settings import Settings

router = keyed_router()


@router.get("/models")
def list_models(
    database: DatabaseDep, *, tenant: TenantDep, settings: SettingsDep
) -> Listing[ModelCard]:
    """List the base and the caller's adapters."""
    with database.reading() as session:
        return list_items(catalog.list_cards(session, tenant=tenant, settings=settings))


@router.get("/models/{model:path}")
def retrieve_model(
    model: str, *, database: DatabaseDep, tenant: TenantDep, settings: SettingsDep
) -> ModelCard:
    """Show a base, an adapter or a checkpoint."""
    with database.reading() as session:
        return catalog.find_card(session, model, tenant=tenant, settings=settings)


@router.delete("/models/{model:path}")
async def delete_model(
    model: str,
    *,
    tenant: TenantDep,
    database: DatabaseDep,
    engine: EngineDep,
    settings: SettingsDep,
) -> Deletion:
    """Delete an adapter; calls that are being answered end as they began."""
    digest = await run_in_threadpool(_delete, database, model, tenant=tenant, settings=settings)
    if digest:
        with suppress(Unavailable):  # the engine forgets unused adapters by itself
            await engine.drop(digest)
    return Deletion(id=model, object="model")


@router.get("/methods")
def show_methods(settings: SettingsDep) -> Listing[MethodCard]:
    """List every method with its options and its size on this base."""
    return list_items(list_methods(settings))


@router.get("/openapi.json", include_in_schema=False)
def show_openapi(request: Request) -> dict[str, object]:
    """Show this API's own description."""
    description: dict[str, object] = request.app.openapi()
    return description


def _delete(database: Database, name: str, *, tenant: str, settings: Settings) -> str | None:
    with database.unit_of_work() as session:
        return catalog.delete(session, name, tenant=tenant, settings=settings)
