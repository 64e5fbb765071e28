"""Use case: take in a file, so that a row never points at bytes that are not there."""

from api.schemas.files import PURPOSES, FileObject
from api.upload_form import UploadForm
from core.database import Database
from core.errors import InvalidRequest
from core.ids import new_id
from core.store import Store
from models.tables import file
from models.tables.file import File

LONGEST_NAME = 255
LIFETIME_SECONDS = range(3600, 2_592_001)
FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


def upload(form: UploadForm, *, tenant: str, database: Database, store: Store) -> FileObject:
    """Store an uploaded file and add its row."""
    if unknown := form.fields.keys() - FIELDS:
        name = min(unknown)
        raise InvalidRequest(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
    purpose, lifetime = _purpose(form), _lifetime(form)
    filename = filename_of(form)
    if form.size == 0:
        raise InvalidRequest("The file is empty.", code="empty_file", param="file")
    digest = store.put_file(form.path)
    with database.unit_of_work() as session:
        row = File(
            id=new_id("file"),
            tenant=tenant,
            filename=filename,
            purpose=purpose,
            bytes=form.size,
            digest=digest,
        )
        file.add(session, row, lifetime=lifetime)
        store.keep_file(digest, form.path)
        return FileObject.of(row)


def _purpose(form: UploadForm) -> str:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise InvalidRequest(
            "Missing required parameter: 'purpose'.",
            code="missing_required_parameter",
            param="purpose",
        )
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"Invalid value for 'purpose': use one of {', '.join(PURPOSES)}.",
            code="invalid_value",
            param="purpose",
        )
    return purpose


def filename_of(form: UploadForm) -> str:
    """Return the name as sent: a label that is shown and never used as a path."""
    name = form.filename
    if not name or len(name) > LONGEST_NAME or any(ord(letter) < 32 for letter in name):
        raise InvalidRequest(
            f"The file needs a name of 1 to {LONGEST_NAME} printable characters.",
            code="invalid_filename",
            param="file",
        )
    return name


def _lifetime(form: UploadForm) -> int | None:
    anchor = form.fields.get("expires_after[anchor]")
    seconds = form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest(
            "Invalid value for 'expires_after.anchor': it must be 'created_at'.",
            code="invalid_value",
            param="expires_after.anchor",
        )
    if seconds is None or not _is_lifetime(seconds):
        raise InvalidRequest(
            "Invalid value for 'expires_after.seconds': give 3600 (an hour) to 2592000 (30 days).",
            code="invalid_value",
            param="expires_after.seconds",
        )
    return int(seconds)


def _is_lifetime(seconds: str) -> bool:
    return seconds.isdecimal() and len(seconds) < 12 and int(seconds) in LIFETIME_SECONDS
