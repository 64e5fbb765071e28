"""What tests ask the kernel about processes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], *, seconds: float = 20.0) -> T:
    """Return the first true value of a condition; fail when it does not come in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def is_alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def freeze(pid: int) -> None:
    """Stop a process; its threads have all stopped then, which on busy cores takes a while."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: all(_state(thread) in "TZ" for thread in Path(f"/proc/{pid}/task").iterdir()))


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    return [child for child in descendants(pid) if is_alive(child) and _parent(child) == pid]


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int(_stat(int(path.name))[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: list[int] = []
    for child in [child for child, parent in parents.items() if parent == pid]:
        found += [child, *descendants(child)]
    return found


def _parent(pid: int) -> int:
    try:
        return int(_stat(pid)[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _state(thread: Path) -> str:
    try:
        return _fields(thread / "stat")[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _stat(pid: int) -> list[str]:
    return _fields(Path(f"/proc/{pid}/stat"))


def _fields(stat: Path) -> list[str]:
    return stat.read_text().rpartition(")")[2].split()
