"""What programs that were killed left of files on their way in or out."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

STALE_SECONDS = 86_400


def remove_stale(folder: Path) -> None:
    """Remove what has lain in a folder for a day."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another program may be doing the same
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
