"""How glibc hands out memory in processes that take and free large pieces again and again."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""What a process must be started with for glibc to ask for large pages: the products of training,
which read and write memory from end to end, take a twenty-fifth less where they are given.
"""


def keep_freed_memory(*, one_arena: bool = False) -> None:
    """Have freed memory used again: fresh pages for each large tensor cost a tenth of a step.

    Threads other than the first give theirs back all the same, unless all share `one_arena`, which
    must be said before they start. Where few threads read files it saves most of that time; where
    a team of them allocates, as in torch's attention backward, they wait for each other.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if not mallopt:
        return
    for parameter, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0)):
        mallopt(parameter, value)
    if one_arena:
        mallopt(_ARENA_MAX, 1)


def give_freed_memory_back() -> None:
    """Give the system what is free now, also between what is not.

    What loading a base leaves is as large as the base, and in pieces that little else fits into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
