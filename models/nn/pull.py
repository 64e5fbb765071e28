"""Base models onto the disk: fetched or imported, converted, hashed, and moved in whole.

A base is made in a temporary folder beside its place and renamed, under a lock; what a killed
try left behind is removed by the next. Downloads go through a cache that data directories share.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.bases import ID_PATTERN, verify, write_manifest
from core.errors import GraftworkError, InvalidRequest, NotFound
from core.settings import Settings
from models.nn.chat import Renderer
from models.nn.convert import convert_gguf, import_folder, read_shape
from models.nn.download import KNOWN, Progress, download

__all__ = ["KNOWN", "Progress", "convert_gguf", "import_folder", "pull"]


def pull(
    base_id: str,
    *,
    settings: Settings,
    source: Path | None = None,
    force: bool = False,
    progress: Progress,
) -> Path:
    """Return the folder of a verified base in the data directory, fetched if need be.

    With `source`, a local folder in Hugging Face's format becomes the base. What is there and
    verifies is kept unless `force` fetches it again; what does not verify is replaced, once there
    is something to take its place. The hub and the package hold different roundings of the same
    weights: the manifest's digest tells them apart.
    """
    if not ID_PATTERN.fullmatch(base_id):
        raise InvalidRequest(f"{base_id!r} is not a base id.", code="invalid_value", param="base")
    target = settings.data_folder / "bases" / base_id
    with _locked(target):
        if source is not None:
            _place(target, lambda folder: import_folder(source, folder), base_id=base_id)
        elif force or not _verifies(target, progress):
            cached = _cached(base_id, settings=settings, force=force, progress=progress)
            with _replacing(target) as folder:
                shutil.copytree(cached, folder, copy_function=_link, dirs_exist_ok=True)
        progress("verify", 0, 1)
        verify(target)
        progress("verify", 1, 1)
    return target


def _cached(base_id: str, *, settings: Settings, force: bool, progress: Progress) -> Path:
    """Return the verified base in the shared cache, downloaded if it is not there."""
    target = settings.cache_folder / "bases" / base_id
    with _locked(target):
        if force or not _verifies(target, progress):
            known = KNOWN.get(base_id)
            if known is None:
                raise NotFound(
                    f"Unknown base {base_id!r}; known are {', '.join(KNOWN)}. "
                    "Another model can be imported from a folder.",
                    code="base_missing",
                )
            _place(target, lambda folder: download(known, folder, progress), base_id=base_id)
    return target


def _place(target: Path, make: Callable[[Path], None], *, base_id: str) -> None:
    """Make a base in a temporary folder, hash it, and put it in place of what is there."""
    with _replacing(target) as folder:
        make(folder)
        for path in folder.iterdir():
            path.chmod(0o644)  # the processes that read a base may be another user's
        write_manifest(
            folder,
            id=base_id,
            shape=read_shape(folder).model_dump(mode="json"),
            renderer_digest=Renderer.load(folder).digest,
        )


def _verifies(folder: Path, progress: Progress) -> bool:
    progress("verify", 0, 1)
    try:
        verify(folder)
    except GraftworkError:
        return False
    return True


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the target's place when the block ends well."""
    prefix = f".{target.name}~"  # which no id holds, so that no other base's begin alike
    for leftover in target.parent.glob(f"{prefix}*/"):
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    try:
        folder = temporary / target.name
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(temporary / "replaced")
        folder.rename(target)
    finally:
        shutil.rmtree(temporary)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Let one process at a time change a base; the lock dies with its holder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _link(source: str, target: str) -> None:
    """Share the bytes of a file where the file system can, else copy them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
