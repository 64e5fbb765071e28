"""The base's dimensions, read from its manifest, for those who have no torch."""

from functools import cache
from pathlib import Path

from core.bases import read_manifest
from core.errors import NotFound
from core.settings import Settings
from models.nn.shape import Shape


def find_shape(settings: Settings) -> Shape | None:
    """Return the base's dimensions; None where this process cannot see the base's folder."""
    try:
        return _read_shape(settings.base_folder)
    except NotFound:
        return None


@cache
def _read_shape(folder: Path) -> Shape:
    return Shape.model_validate(read_manifest(folder).shape)
