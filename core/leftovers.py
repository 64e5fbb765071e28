"""What programs that were killed left of files on their way in or out."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STALE_SECONDS = 86_400
SCRATCH = "scratch-"
"""What the names of locked folders begin with."""


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder within another one, which is gone at the end.

    Its lock dies with its program: if that is killed, `remove_stale` sees that nobody uses it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    unlocked = Path(tempfile.mkdtemp(dir=folder))
    lock = os.open(unlocked, os.O_RDONLY)
    try:
        with suppress(OSError):  # where a file system has no locks, a day has to pass
            fcntl.flock(lock, fcntl.LOCK_EX)
        own = unlocked.rename(folder / f"{SCRATCH}{unlocked.name}")
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
    finally:
        os.close(lock)


def remove_stale(folder: Path) -> None:
    """Remove what has lain in a folder for a day, and what nobody uses of `scratch_folder`."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another program may be doing the same
            if path.stat().st_mtime < time.time() - STALE_SECONDS or _is_abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_abandoned(path: Path) -> bool:
    if not path.name.startswith(SCRATCH):
        return False
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
