"""Files as OpenAI shows them."""

from typing import Literal, get_args

from api.schemas.common import Reply
from models.tables.file import File

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)


class FileObject(Reply):
    """One stored file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None

    @classmethod
    def of(cls, row: File) -> "FileObject":
        """Show a row."""
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=int(row.created_at),
            expires_at=None if row.expires_at is None else int(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
        )
