"""Adapters as files: bring one in, take one away."""

from fastapi import status
from fastapi.responses import StreamingResponse

from api.deps import DatabaseDep, EngineDep, SettingsDep, StoreDep, TenantDep
from api.keyed_route import StrictRequest, keyed_router
from api.schemas.catalog import ImportedModel
from api.services.export import export
from api.services.imports import import_adapter
from api.services.readiness import Parts
from api.upload_form import UploadForm

router = keyed_router()

FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "suffix": {"type": "string", "maxLength": 64},
                    },
                }
            }
        },
    }
}


@router.post("/adapters", status_code=status.HTTP_201_CREATED, openapi_extra=FORM)
async def create_adapter(
    request: StrictRequest,
    *,
    tenant: TenantDep,
    database: DatabaseDep,
    store: StoreDep,
    engine: EngineDep,
    settings: SettingsDep,
) -> ImportedModel:
    """Take in a zip of a PEFT folder or of an export, if the engine finds that it fits the base."""
    folder, limit = settings.uploads_folder, settings.limits.adapter_bytes
    async with UploadForm.receive(request, folder=folder, limit=limit) as form:
        return await import_adapter(
            form, tenant=tenant, parts=Parts(settings, database, store, engine)
        )


@router.get("/adapters/{name:path}/download", response_class=StreamingResponse)
def download_adapter(
    name: str,
    *,
    tenant: TenantDep,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
) -> StreamingResponse:
    """Give an adapter or a checkpoint back as a zip with a model card, never shown by a browser."""
    found = export(name, tenant=tenant, database=database, store=store, settings=settings)
    return StreamingResponse(
        found.pieces,
        media_type="application/zip",
        headers={
            "content-length": str(found.size),
            "content-disposition": f'attachment; filename="{found.filename}"',
        },
    )
