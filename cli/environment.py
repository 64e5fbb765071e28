"""Settings for this run: options go over `GRAFTWORK_*` variables, and children get them too."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import InvalidRequest

if TYPE_CHECKING:
    from core.settings import Settings

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Everything lies here; default: $GRAFTWORK_DATA_DIR, else ./.graftwork.",
        show_default=False,
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        help="The api's address; default: $GRAFTWORK_HOST, else 127.0.0.1.", show_default=False
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        help="The api's port (`serve` by 0: a free one); default: $GRAFTWORK_PORT, else 8000.",
        show_default=False,
    ),
]


def configure(
    *, data_dir: Path | None = None, host: str | None = None, port: int | None = None
) -> "Settings":
    """Put the given options into the environment and return the settings in force.

    Call it before importing anything that reads the settings at import.
    """
    from pydantic import ValidationError

    from core.settings import get_settings

    for name, value in {"DATA_DIR": data_dir, "HOST": host, "PORT": port}.items():
        if value is not None:
            os.environ[f"GRAFTWORK_{name}"] = str(value)
    get_settings.cache_clear()
    try:
        settings = get_settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = "__".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequest(f"GRAFTWORK_{variable}: {first['msg']}.") from error
    _require_folder(settings.data_folder)
    os.environ["GRAFTWORK_DATA_DIR"] = str(settings.data_folder)
    return settings


def _require_folder(folder: Path) -> None:
    """Refuse a data directory that cannot be one."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise InvalidRequest(f"The data directory cannot be {folder}: {error.strerror}.") from error
    if not there.is_dir():
        raise InvalidRequest(f"The data directory cannot be {folder}: {there} is no folder.")


def make_folder(folder: Path) -> None:
    """Make the data directory, or a folder in it, for its owner alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidRequest(
            f"{folder} cannot be made: {error.strerror}. Choose another --data-dir."
        ) from error
