"""How threads beside the torch thread behave: they may use torch, but never more than a core."""

import ctypes
import os
import sys
import threading
from contextlib import suppress

import torch

OPENMP = "libgomp.so.1"
"""By this name the library that torch has loaded is found; elsewhere nothing is changed."""


NICENESS = 5
"""A step's threads get three times the time of a helper that wants the same core."""


def stand_back() -> None:
    """Let this thread have what steps leave of the cores: who is being served goes first."""
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def use_one_core() -> None:
    """Keep the torch operations of this thread out of OpenMP, for as long as it lives.

    A second team of threads on the same cores would slow every operation of the first one.
    `torch.set_num_threads` would not do: part of what it sets is the whole process's.
    """
    torch.get_num_threads()  # torch sets what it takes for right once, at its first use in a thread
    with suppress(OSError, AttributeError):
        ctypes.CDLL(OPENMP).omp_set_num_threads(1)
