"""Sides of a comparison: real processes that answer in turns, and what is made of their answers."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.equality import Bound, Unequal, check_curves, check_same
from benchmarks.record import describe_machine, finish, save
from benchmarks.sides import Side, SideFailed, environment, interleave, ratio, start_plain
from core.memory import LARGE_PAGES

ECHO = "tests.benchmarks.echo_side"


def make_side(name: str, folder: Path) -> Side:
    return Side(name, ECHO, name, log=folder / f"{name}.log", variables=environment(threads=1))


def test_sides_answer_in_turns(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sides = [stack.enter_context(make_side(name, tmp_path)) for name in ("ours", "peer")]
        answers = interleave(sides, {"ours": {"n": 1}, "peer": {"n": 2}}, repeats=2)
        (impatient,) = interleave(sides[:1], {"ours": {}}, repeats=2, patience=0).values()
    assert answers["ours"] == [{"n": 1, "by": "ours", "threads": "1"}] * 2
    assert answers["peer"] == [{"n": 2, "by": "peer", "threads": "1"}] * 2
    assert len(impatient) == 1
    assert "a library's own words" in (tmp_path / "ours.log").read_text()
    assert all(side.process.returncode == 0 for side in sides)


def test_sides_work_beside_each_other_until_their_answers_are_taken(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sides = [stack.enter_context(make_side(name, tmp_path)) for name in ("ours", "peer")]
        for number, side in enumerate(sides):
            side.put({"n": number})
        with pytest.raises(SideFailed, match="an answer that none took"):
            sides[0].ask({"n": 7})
        assert [side.take()["n"] for side in reversed(sides)] == [1, 0]
        with pytest.raises(SideFailed, match="was not asked"):
            sides[0].take()


def test_a_side_that_fails_says_why_and_lives(tmp_path: Path) -> None:
    with make_side("peer", tmp_path) as side:
        with pytest.raises(SideFailed, match="no such thing"):
            side.ask({"fail": "no such thing"})
        assert side.ask({"n": 1})["n"] == 1
        with pytest.raises(SideFailed, match="gone for good"):
            side.ask({"vanish": True})


def test_sides_have_the_same_threads_and_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    kept, plain = environment(threads=2), environment(threads=2, keep_memory=False)
    assert kept["OMP_NUM_THREADS"] == plain["OMP_NUM_THREADS"] == "2"
    assert kept["MALLOC_MMAP_MAX_"] == "0"
    assert LARGE_PAGES.items() <= kept.items()
    assert not [name for name in plain if name.startswith(("MALLOC_", "GLIBC_"))]


def test_our_sides_start_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTWORK_ENGINE__QUANTIZATION", "int8")
    monkeypatch.setenv("GRAFTWORK_NATIVE", "off")
    start_plain()
    assert [name for name in environment() if name.startswith("GRAFTWORK_")] == ["GRAFTWORK_NATIVE"]
    (tmp_path / ".env").write_text("GRAFTWORK_ENGINE__QUANTIZATION=int8\n")
    with pytest.raises(SystemExit, match="would change what is measured"):
        start_plain()


def test_a_ratio_is_of_medians() -> None:
    assert ratio([4.0, 100.0, 5.0], [2.0, 2.5, 0.1]) == 2.5


def test_unequal_curves_have_no_ratio() -> None:
    bound = Bound(mean=0.01, most=0.02)
    found = check_curves([1.0, 2.02], [1.0, 2.0], bound=bound, what="loss")
    assert found == {"mean": 0.005, "most": 0.01, "bound": {"mean": 0.01, "most": 0.02}}
    for ours in ([1.0, 2.1], [1.012, 2.024], [1.0], [1.0, float("nan")]):
        with pytest.raises(Unequal, match="loss"):
            check_curves(ours, [1.0, 2.0], bound=bound, what="loss")
    check_same([1, 2], [1, 2], what="rows")
    with pytest.raises(Unequal, match="rows"):
        check_same([1, 2], [2, 1], what="rows")


def test_a_result_is_a_file_and_a_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"benchmark": "some", "machine": describe_machine(), "ratios": {"a_vs_b": 2.0}}
    assert json.loads(save("some", result, folder=tmp_path / "new").read_text()) == result
    finish(result)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
