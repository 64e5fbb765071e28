"""Threads beside the steps: they go second, and nobody else does."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.pace import give_way
from worker.engine.helper import AT_ONCE, LONGEST_PAUSE, NICENESS, PAUSE, Pace


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def work(seconds: float) -> None:
    """Keep a core for so long, then give way."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass
    give_way()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lengths of the sleeps that anybody took instead of sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own here")
def test_a_helper_stands_back_alone() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=Pace().keep) as helpers:
        assert helpers.submit(niceness).result() == NICENESS
    with ThreadPoolExecutor(1) as others:
        assert others.submit(niceness).result() == before
    assert niceness() == before


def test_a_helper_pauses_in_proportion_to_its_work_while_there_are_steps(
    pauses: list[float],
) -> None:
    pace = Pace()
    pace.hurried = True
    with ThreadPoolExecutor(1, initializer=pace.keep) as helpers:
        helpers.submit(work, 2 * AT_ONCE).result()
        helpers.submit(work, LONGEST_PAUSE).result()
    assert 2 * AT_ONCE * PAUSE <= pauses[0] <= LONGEST_PAUSE
    assert pauses[1] == LONGEST_PAUSE


def test_a_helper_goes_on_with_little_work_or_without_steps(pauses: list[float]) -> None:
    pace = Pace()
    with ThreadPoolExecutor(1, initializer=pace.keep) as helpers:
        helpers.submit(work, 2 * AT_ONCE).result()
        pace.hurried = True
        helpers.submit(give_way).result()
    assert not pauses


def test_other_threads_never_pause(pauses: list[float]) -> None:
    pace = Pace()
    pace.hurried = True
    with ThreadPoolExecutor(1, initializer=pace.keep) as helpers:
        helpers.submit(give_way).result()
        work(2 * AT_ONCE)
    assert not pauses
