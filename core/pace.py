"""Long work that can be told to give way to what is more urgent.

Code that reads, hashes or lays out many megabytes calls `give_way` between its pieces, about every
millisecond. Most threads go straight on; one that was told how to pause does so there. Niceness
alone would not do: a kernel that shares a core out does it for several milliseconds at a time.
"""

import threading
from collections.abc import Callable

_own = threading.local()


def give_way() -> None:
    """Pause here if this thread was told to."""
    pause: Callable[[], None] | None = getattr(_own, "pause", None)
    if pause is not None:
        pause()


def pause_by(pause: Callable[[], None]) -> None:
    """Have this thread call `pause` wherever it may give way, for as long as it lives."""
    _own.pause = pause
