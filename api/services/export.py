"""Use case: give an adapter back as a zip, the same bytes whenever it is asked for."""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from api.schemas.catalog import ModelCard
from api.services.catalog import find_card
from api.services.model_card import render
from api.upload_form import PREFIX
from core.database import Database
from core.errors import InvalidRequest
from core.settings import MEBIBYTE, Settings
from core.store import Store, full_disk

README = "README.md"
EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX = 3
READABLE = 0o100644 << 16


class Export(NamedTuple):
    """A zip that is ready to be sent; its file goes when the last piece is gone."""

    filename: str
    size: int
    pieces: Iterator[bytes]


def export(
    name: str, *, tenant: str, database: Database, store: Store, settings: Settings
) -> Export:
    """Pack an adapter's or a checkpoint's files, each checked by its hash, and a model card."""
    with database.reading() as session:
        card = find_card(session, name, tenant=tenant, settings=settings)
    digest = card.graftwork.digest
    if digest is None:
        raise InvalidRequest(
            f"{name!r} is the base model, not an adapter.", code="not_an_adapter", param="model"
        )
    uploads = settings.uploads_folder
    uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
    with full_disk(), tempfile.TemporaryDirectory(dir=uploads, prefix=PREFIX) as scratch:
        folder = store.fetch_tree(digest, Path(scratch) / "adapter")
        (folder / README).write_text(render(card, folder))
        target = tempfile.TemporaryFile(dir=uploads)  # noqa: SIM115 - lives until it is sent
        _pack(folder, target)
    return Export(_filename(card), target.tell(), _pieces(target))


def _pack(folder: Path, target: IO[bytes]) -> None:
    """Write a zip without anything that a clock or a compressor decides."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(path.name, EPOCH)
            entry.create_system, entry.external_attr = UNIX, READABLE
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(entry, "w") as packed:
                shutil.copyfileobj(source, packed, MEBIBYTE)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while piece := file.read(MEBIBYTE):
            yield piece


def _filename(card: ModelCard) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", card.id).strip("-.") + ".zip"
