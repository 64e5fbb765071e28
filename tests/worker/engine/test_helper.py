"""Threads beside the steps: they go second, and nobody else does."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.engine.helper import NICENESS, stand_back


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own here")
def test_a_helper_stands_back_alone() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=stand_back) as helpers:
        assert helpers.submit(niceness).result() == NICENESS
    with ThreadPoolExecutor(1) as others:
        assert others.submit(niceness).result() == before
    assert niceness() == before
