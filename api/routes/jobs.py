"""Fine-tuning jobs: create, list, look, stop, go on."""

from typing import Annotated

from fastapi import Header, Request
from pydantic import TypeAdapter, ValidationError

from api.deps import DatabaseDep, PageDep, SettingsDep, TenantDep
from api.keyed_route import keyed_router
from api.schemas.common import Listing, list_items
from api.schemas.job_views import CheckpointObject, EventObject, JobObject
from api.schemas.jobs import JobCreate, Metadata
from api.services.submit import submit
from core.errors import InvalidRequest
from models.tables import checkpoint, event, job

router = keyed_router()

_metadata = TypeAdapter[dict[str, str]](Metadata)

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.post("/fine_tuning/jobs")
def create_job(
    body: JobCreate,
    *,
    database: DatabaseDep,
    tenant: TenantDep,
    settings: SettingsDep,
    idempotency_key: IdempotencyKey = None,
) -> JobObject:
    """Ask for a tuning job."""
    with database.unit_of_work() as session:
        row = submit(
            session, body, tenant=tenant, idempotency_key=idempotency_key, settings=settings
        )
        return JobObject.of(row)


@router.get("/fine_tuning/jobs")
def list_jobs(
    request: Request, *, database: DatabaseDep, tenant: TenantDep, page: PageDep
) -> Listing[JobObject]:
    """List jobs, newest first; `metadata[k]=v` keeps those that carry the pair."""
    with database.reading() as session:
        rows, has_more = job.list_page(
            session, tenant=tenant, page=page, metadata=_metadata_filter(request)
        )
        return list_items([JobObject.of(row) for row in rows], has_more=has_more)


@router.get("/fine_tuning/jobs/{job_id}")
def retrieve_job(job_id: str, *, database: DatabaseDep, tenant: TenantDep) -> JobObject:
    """Show a job."""
    with database.reading() as session:
        return JobObject.of(job.get(session, job_id, tenant=tenant))


@router.post("/fine_tuning/jobs/{job_id}/cancel")
def cancel_job(job_id: str, *, database: DatabaseDep, tenant: TenantDep) -> JobObject:
    """End a job for good."""
    with database.unit_of_work() as session:
        return JobObject.of(job.cancel(session, job_id, tenant=tenant))


@router.post("/fine_tuning/jobs/{job_id}/pause")
def pause_job(job_id: str, *, database: DatabaseDep, tenant: TenantDep) -> JobObject:
    """Stop a job so that it can go on later."""
    with database.unit_of_work() as session:
        return JobObject.of(job.pause(session, job_id, tenant=tenant))


@router.post("/fine_tuning/jobs/{job_id}/resume")
def resume_job(job_id: str, *, database: DatabaseDep, tenant: TenantDep) -> JobObject:
    """Let a paused job go on from where it was saved."""
    with database.unit_of_work() as session:
        return JobObject.of(job.resume(session, job_id, tenant=tenant))


@router.get("/fine_tuning/jobs/{job_id}/events")
def list_events(
    job_id: str, *, database: DatabaseDep, tenant: TenantDep, page: PageDep
) -> Listing[EventObject]:
    """List what happened to a job, newest first."""
    with database.reading() as session:
        row = job.get(session, job_id, tenant=tenant)
        events, has_more = event.list_page(session, row.id, page=page)
        return list_items([EventObject.of(found) for found in events], has_more=has_more)


@router.get("/fine_tuning/jobs/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, *, database: DatabaseDep, tenant: TenantDep, page: PageDep
) -> Listing[CheckpointObject]:
    """List a job's checkpoints, newest first."""
    with database.reading() as session:
        row = job.get(session, job_id, tenant=tenant)
        found, has_more = checkpoint.list_page(session, row.id, page=page)
        return list_items([CheckpointObject.of(item) for item in found], has_more=has_more)


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """Read `metadata[k]=v` pairs; the literal `metadata=null` asks for jobs without any."""
    given = [item for item in request.query_params.multi_items() if item[0].startswith("metadata[")]
    whole = request.query_params.getlist("metadata")
    if not given and whole == ["null"]:
        return {}
    if whole or any(not name.endswith("]") for name, _ in given):
        raise _wrong_metadata("write each pair as 'metadata[key]=value', or 'metadata=null' alone")
    if len(dict(given)) < len(given):
        raise _wrong_metadata("give each key once")
    try:
        pairs = _metadata.validate_python(
            {name[len("metadata[") : -1]: value for name, value in given}
        )
    except ValidationError as error:
        message = "at most 16 pairs, keys of 1 to 64 characters, values of at most 512"
        raise _wrong_metadata(message) from error
    return pairs or None


def _wrong_metadata(rule: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for 'metadata': {rule}.", code="invalid_value", param="metadata"
    )
