"""A trainer leaves an engine that works its cores, and has them back afterwards."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.cores import Beat, available, count
from worker.affinity import Affinity

IDLE = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this kernel has no affinity to set"
)


@pytest.fixture
def process() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", IDLE])
    yield child.pid
    child.kill()
    child.wait()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def allowed(process: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(t.name)) for t in Path(f"/proc/{process}/task").iterdir()]


def test_all_threads_leave_the_engine_its_cores_while_it_works(
    tmp_path: Path, process: int
) -> None:
    until(lambda: len(allowed(process)) == 2)
    everywhere, engine = set(available()), Beat(tmp_path, "engine")
    affinity = Affinity(process, folder=tmp_path)
    until(lambda: count(tmp_path, "trainer") == 1)
    assert allowed(process) == [everywhere] * 2
    kept = set(available()[max(1, len(everywhere) // 2) :]) or everywhere

    def confined() -> bool:
        engine.beat()
        return allowed(process) == [kept] * 2

    until(confined)
    until(lambda: allowed(process) == [everywhere] * 2)
    affinity.end()
    assert count(tmp_path, "trainer") == 0


def test_a_thread_that_was_missed_is_met_at_the_next_look(tmp_path: Path, process: int) -> None:
    until(lambda: len(allowed(process)) == 2)
    cores, engine = set(available()), Beat(tmp_path, "engine")
    affinity = Affinity(process, folder=tmp_path)
    engine.beat()
    until(lambda: any(kept < cores for kept in allowed(process)) or len(cores) == 1)
    until(lambda: allowed(process) == [cores] * 2)
    os.sched_setaffinity(process, list(cores)[-1:])
    until(lambda: allowed(process) == [cores] * 2)
    affinity.end()


def test_a_trainer_that_has_ended_is_no_error(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    Beat(tmp_path, "engine").beat()
    affinity = Affinity(child.pid, folder=tmp_path)
    until(lambda: count(tmp_path, "trainer") == 1)
    affinity.end()
    assert count(tmp_path, "trainer") == 0
