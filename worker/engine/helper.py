"""How threads beside the torch thread behave: they may use torch, but never more than a core."""

import ctypes
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from core.pace import pause_by

OPENMP = "libgomp.so.1"
"""By this name the library that torch has loaded is found; elsewhere nothing is changed."""

NICENESS = 5
"""A step's threads get three times the time of a helper that wants the same core."""
AT_ONCE = 0.001
"""Seconds of a core that a helper takes before it pauses, if its work lets it."""
PAUSE = 4
"""How many times as long it pauses as it has worked."""
LONGEST_PAUSE = 0.02
"""Seconds; a piece of work that cannot be divided may have taken long."""


class Pace:
    """Lets helpers have what steps leave of the cores: who is being served goes first.

    While there are steps a helper sleeps between short pieces of work. Both threads of a step wait
    for each other many times, so that one that loses its core for some milliseconds delays it by
    as much, again and again.
    """

    def __init__(self) -> None:
        self.hurried = False
        """Whether rows are waiting for their next tokens."""

    def keep(self) -> None:
        """Have this thread keep the pace, for as long as it lives."""
        if sys.platform == "linux":  # elsewhere threads have no niceness of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        began = time.thread_time()

        def pause() -> None:
            nonlocal began
            worked = time.thread_time() - began
            if worked < AT_ONCE:
                return
            if self.hurried:
                time.sleep(min(worked * PAUSE, LONGEST_PAUSE))
            began = time.thread_time()

        pause_by(pause)


def use_one_core() -> None:
    """Keep the torch operations of this thread out of OpenMP, for as long as it lives.

    A second team of threads on the same cores would slow every operation of the first one.
    `torch.set_num_threads` would not do: part of what it sets is the whole process's.
    """
    torch.get_num_threads()  # torch sets what it takes for right once, at its first use in a thread
    with suppress(OSError, AttributeError):
        ctypes.CDLL(OPENMP).omp_set_num_threads(1)


def start_helpers(count: int, *, name: str, pace: Pace) -> ThreadPoolExecutor:
    """Return threads that may use torch beside the steps."""

    def begin() -> None:
        pace.keep()
        use_one_core()

    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=begin)
