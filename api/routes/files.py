"""Files: upload, list, read, delete."""

from collections.abc import Iterator
from itertools import chain
from urllib.parse import quote

from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.deps import DatabaseDep, FilePageDep, SettingsDep, StoreDep, TenantDep
from api.keyed_route import StrictRequest, keyed_router
from api.schemas.common import Deletion, Listing, list_items
from api.schemas.files import FileObject
from api.services.upload import upload
from api.upload_form import UploadForm
from core.database import Database
from models.tables import file

router = keyed_router()

FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                        "expires_after[anchor]": {"type": "string"},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


@router.post("/files", openapi_extra=FORM)
async def create_file(
    request: StrictRequest,
    *,
    tenant: TenantDep,
    database: DatabaseDep,
    store: StoreDep,
    settings: SettingsDep,
) -> FileObject:
    """Take in a file, streamed to disk."""
    folder = settings.uploads_folder
    async with UploadForm.receive(request, folder=folder, limit=settings.limits.file_bytes) as form:
        return await run_in_threadpool(upload, form, tenant=tenant, database=database, store=store)


@router.get("/files")
def list_files(
    database: DatabaseDep, *, tenant: TenantDep, page: FilePageDep, purpose: str | None = None
) -> Listing[FileObject]:
    """List files, newest first unless `order=asc`."""
    with database.reading() as session:
        rows, has_more = file.list_page(session, tenant=tenant, page=page, purpose=purpose)
        return list_items([FileObject.of(row) for row in rows], has_more=has_more)


@router.get("/files/{file_id}")
def retrieve_file(file_id: str, *, database: DatabaseDep, tenant: TenantDep) -> FileObject:
    """Show a file."""
    with database.reading() as session:
        return FileObject.of(file.get(session, file_id, tenant=tenant))


@router.get("/files/{file_id}/content", response_class=StreamingResponse)
def read_file(
    file_id: str, *, tenant: TenantDep, database: DatabaseDep, store: StoreDep
) -> StreamingResponse:
    """Give a file's bytes back, never to be shown by a browser."""
    row = _find(database, file_id, tenant=tenant)
    return StreamingResponse(
        _opened(store.stream(row.digest)),
        media_type="application/octet-stream",
        headers={
            "content-length": str(row.bytes),
            "content-disposition": f"attachment; filename*=utf-8''{quote(row.filename, safe='')}",
        },
    )


@router.delete("/files/{file_id}")
def delete_file(file_id: str, *, database: DatabaseDep, tenant: TenantDep) -> Deletion:
    """Delete a file; jobs that were given it keep their bytes."""
    with database.unit_of_work() as session:
        file.delete(session, file_id, tenant=tenant)
        return Deletion(id=file_id, object="file")


def _find(database: Database, file_id: str, *, tenant: str) -> file.File:
    with database.reading() as session:
        return file.get(session, file_id, tenant=tenant)


def _opened(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Read the first piece now, so that missing bytes are an error and not an empty file."""
    return chain([next(pieces, b"")], pieces)
