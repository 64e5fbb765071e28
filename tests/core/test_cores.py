import os
import time
from pathlib import Path

import pytest

from core.cores import FORGOTTEN_SECONDS, FRESH_SECONDS, Beat, available, count, engine_share


def test_who_beats_counts_until_it_ends(tmp_path: Path) -> None:
    engine, first, second = (Beat(tmp_path, kind) for kind in ("engine", "trainer", "trainer"))
    assert count(tmp_path, "trainer") == 0
    for beat in (engine, first, second):
        beat.beat()
        beat.beat()
    assert (count(tmp_path, "engine"), count(tmp_path, "trainer")) == (1, 2)
    first.end()
    first.end()
    assert count(tmp_path, "trainer") == 1


def test_who_has_fallen_silent_counts_no_more(tmp_path: Path) -> None:
    beat = Beat(tmp_path, "engine")
    beat.beat()
    (path,) = tmp_path.rglob("engine-*")
    for silence, is_there in ((FRESH_SECONDS + 1, True), (FORGOTTEN_SECONDS + 1, False)):
        os.utime(path, (time.time() - silence,) * 2)
        assert count(tmp_path, "engine") == 0
        assert path.exists() == is_there
    beat.beat()
    os.utime(path, (time.time() + 3600,) * 2)  # the clock was set back
    assert count(tmp_path, "engine") == 0
    beat.beat()
    assert count(tmp_path, "engine") == 1


@pytest.mark.parametrize(
    ("cores", "trainers", "share"),
    [(1, 1, 1), (2, 0, 2), (2, 1, 1), (2, 5, 1), (8, 1, 4), (9, 2, 3)],
)
def test_everybody_has_a_fair_share_and_at_least_one(cores: int, trainers: int, share: int) -> None:
    assert engine_share(cores, trainers=trainers) == share


def test_this_process_may_use_some_core() -> None:
    assert available() == sorted(set(available()))
    assert available()
