"""How glibc hands out memory in processes that take and free large pieces again and again."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have freed memory used again, by whichever thread asks next; before threads are started.

    Fresh pages for each large tensor cost a tenth of a training step, and most of the time that an
    adapter takes to be read: threads other than the first give theirs back each time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)):
            mallopt(parameter, value)
