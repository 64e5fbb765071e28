"""Who computes on this machine: programs that share its cores tell each other by files.

A program that computes touches a file of its own every now and then; one that was touched lately
counts. Nothing is left to clean up after a crash but a file that soon counts no more.
"""

import os
import secrets
import time
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["engine", "trainer"]

EVERY_SECONDS = 0.5
FRESH_SECONDS = 2.0
FORGOTTEN_SECONDS = 60.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Beat:
    """Says that a program computes, for as long as it is repeated."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        """Announce nothing yet; `folder` is where programs of one installation meet."""
        self._folder = _here(folder)
        self._path = self._folder / f"{kind}-{secrets.token_hex(8)}"

    def beat(self) -> None:
        """Say it; to be repeated every `EVERY_SECONDS`."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch()

    def end(self) -> None:
        """Take it back."""
        self._path.unlink(missing_ok=True)


def count(folder: Path, kind: Kind) -> int:
    """Return how many programs of a kind compute on this machine now."""
    now, found = time.time(), 0
    for path in _files(_here(folder), kind):
        try:
            age = now - os.stat(path).st_mtime
            if age > FORGOTTEN_SECONDS:
                os.unlink(path)
        except FileNotFoundError:
            continue
        found += abs(age) <= FRESH_SECONDS  # a clock that was set back makes files of the future
    return found


def available() -> list[int]:
    """Return the cores that this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def engine_share(cores: int, *, trainers: int) -> int:
    """Return how many of so many cores a busy engine takes beside so many trainers."""
    return max(1, cores // (trainers + 1))


def _files(folder: Path, kind: Kind) -> list[str]:
    """Return the paths of the files of a kind; a plain listing, since busy programs ask for it."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.name.startswith(f"{kind}-")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _here(folder: Path) -> Path:
    """Return the folder of this machine: a data directory may be that of several."""
    try:
        return folder / _boot()
    except OSError:
        return folder / "machine"


@cache
def _boot() -> str:
    return _BOOT.read_text().strip()
