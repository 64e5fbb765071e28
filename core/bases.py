"""Base models on disk: a folder in Hugging Face's format and a manifest that pins its bytes."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from core.errors import Corrupt, NotFound

MANIFEST = "graftwork-base.json"
REPOSITORIES = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What others call a known base, by its id here: its authors' repository."""
ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class BaseManifest(BaseModel):
    """What a base is: its files by hash, and its dimensions for those who have no torch."""

    model_config = ConfigDict(frozen=True)

    id: str
    digest: str
    files: dict[str, str]
    shape: dict[str, Any]
    renderer_digest: str


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_files(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write_manifest(
    folder: Path,
    *,
    id: str,  # noqa: A002 - the manifest's own word
    shape: dict[str, Any],
    renderer_digest: str,
) -> BaseManifest:
    """Hash every file of `folder` and write the manifest beside them."""
    files = {
        path.name: hash_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    manifest = BaseManifest(
        id=id, digest=_hash_files(files), files=files, shape=shape, renderer_digest=renderer_digest
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))
    return manifest


def read_manifest(folder: Path) -> BaseManifest:
    """Read a base's manifest; `NotFound` says how to get the base."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(
            f"The base model {folder.name!r} is not in the data directory; "
            f"run `graftwork pull {folder.name}`.",
            code="base_missing",
        )
    return BaseManifest.model_validate_json(path.read_bytes())


def verify(folder: Path) -> BaseManifest:
    """Compare every file with the manifest; raise `Corrupt` for the first that differs."""
    manifest = read_manifest(folder)
    if manifest.digest != _hash_files(manifest.files):
        raise Corrupt(f"The manifest of base {manifest.id!r} was changed.", code="base_corrupt")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or hash_file(folder / name) != digest:
            raise Corrupt(
                f"{name} of base {manifest.id!r} is not the file that was pulled; "
                f"run `graftwork pull {manifest.id}`.",
                code="base_corrupt",
            )
    return manifest
