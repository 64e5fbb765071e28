"""The engine takes its share of the cores beside trainers, and all of them alone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from core.cores import EVERY_SECONDS, FRESH_SECONDS, Beat, count
from worker.engine import threads as module
from worker.engine.threads import Threads


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "available", lambda: [0, 1, 2, 3])
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Threads]]:
    made: list[Threads] = []

    def one(folder: Path = tmp_path, *, most: int = 0) -> Threads:
        made.append(Threads(folder, most=most))
        return made[-1]

    yield one
    for threads in made:
        threads.close()


def look_again(threads: Threads) -> int:
    time.sleep(EVERY_SECONDS)
    threads.work()
    return torch.get_num_threads()


def test_threads_follow_who_else_computes(tmp_path: Path, make: Callable[..., Threads]) -> None:
    threads, trainer = make(), Beat(tmp_path, "trainer")
    assert torch.get_num_threads() == 4
    threads.work()
    trainer.beat()
    assert look_again(threads) == 2
    trainer.end()
    assert look_again(threads) == 4


def test_an_engine_counts_as_long_as_it_has_work_however_long_a_step_takes(
    tmp_path: Path, make: Callable[..., Threads]
) -> None:
    threads = make()
    threads.work()
    time.sleep(FRESH_SECONDS + 2 * EVERY_SECONDS)
    assert count(tmp_path, "engine") == 1
    threads.rest()
    time.sleep(FRESH_SECONDS + 2 * EVERY_SECONDS)
    assert count(tmp_path, "engine") == 0


def test_what_an_operator_grants_is_the_most(tmp_path: Path, make: Callable[..., Threads]) -> None:
    threads = make(most=3)
    assert torch.get_num_threads() == 3
    Beat(tmp_path, "trainer").beat()
    threads.work()
    assert torch.get_num_threads() == 2


def test_a_folder_that_cannot_be_written_stops_nobody(
    tmp_path: Path, make: Callable[..., Threads]
) -> None:
    (tmp_path / "file").touch()
    threads = make(tmp_path / "file" / "cores", most=3)
    threads.work()
    assert torch.get_num_threads() == 3
