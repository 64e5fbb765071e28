"""`graftwork pull`: put a base model into the data directory, verified."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cli.console import err, fail, out
from cli.environment import DataDir, configure, make_folder
from core.errors import NotFound

STAGES = {"download": "Downloading", "convert": "Converting", "verify": "Verifying"}


def pull(
    base_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Default: the base of the settings.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            exists=True,
            file_okay=False,
            help="A folder in Hugging Face's format instead of a download.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Put a base model into the data directory, from the shared cache where it can."""
    settings = configure(data_dir=data_dir)
    name = base_id or settings.base
    folder = settings.data_folder / "bases" / name
    make_folder(settings.data_folder)
    if source is not None and folder.exists() and not force:
        fail(f"{folder} is there; adapters fit only the base that they grew on. --force replaces.")
    err.print(f"Base model {name}", markup=False)
    from models.nn.pull import pull as fetch

    try:
        with _Display() as display:
            fetch(name, settings=settings, source=source, force=force, progress=display.show)
    except NotFound as error:
        replaces = " --force" if folder.exists() else ""
        fail(f"{error.message} Run: graftwork pull {name} --from FOLDER{replaces}")
    out.print(f"{name} is in {folder}, verified.", markup=False)


class _Display:
    """A bar in a terminal; elsewhere a line at the start of each stage."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._stage = ""

    def __enter__(self) -> "_Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is; only downloads are measured in bytes."""
        if stage != self._stage:
            self._stage = stage
            self._bar.reset(self._task, description=STAGES[stage], total=None)
            if not err.is_terminal:
                err.print(f"{STAGES[stage]} …")
        if total > 1:
            self._bar.update(self._task, completed=done, total=total)
