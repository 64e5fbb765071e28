"""The open routes: does it live, is it ready, what does it count."""

from contextlib import suppress

from fastapi import APIRouter, Request, Response

from api.deps import DatabaseDep, EngineDep, SettingsDep, StoreDep
from api.schemas.health import Liveness, Readiness
from api.services.readiness import Parts, check_readiness
from core.errors import Unavailable
from models.tables import job

router = APIRouter()


@router.get("/livez")
@router.head("/livez", include_in_schema=False)
@router.get("/health", include_in_schema=False)
async def live() -> Liveness:
    """Say that this process answers, whatever the state of others."""
    return Liveness()


@router.get("/readyz", responses={503: {"model": Readiness}})
@router.head("/readyz", include_in_schema=False)
async def ready(
    response: Response,
    *,
    settings: SettingsDep,
    database: DatabaseDep,
    store: StoreDep,
    engine: EngineDep,
) -> Readiness:
    """Look at everything that requests need."""
    readiness = await check_readiness(Parts(settings, database, store, engine))
    if readiness.status != "ready":
        response.status_code = 503
    return readiness


@router.get("/metrics", include_in_schema=False)
def show_metrics(request: Request, database: DatabaseDep) -> Response:
    """Show the counts in Prometheus' text format."""
    metrics = request.app.state.metrics
    with suppress(Unavailable), database.reading() as session:
        metrics.show_jobs(job.count_by_state(session))
    return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
