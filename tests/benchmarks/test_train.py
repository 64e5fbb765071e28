"""The training benchmark: its rows by hand, its refusals, and a small run of each of its sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.equality import Unequal
from benchmarks.sides import Side, environment
from benchmarks.train.compare import Bench, Layout, check, speed
from benchmarks.train.gang import _check, _times, make_jobs
from benchmarks.train.kinds import KINDS, LORA
from benchmarks.train.profile import COUNTS
from benchmarks.train.protocol import IGNORED
from benchmarks.train.rows import (
    RowSet,
    chat_work,
    find_sets,
    full_work,
    grouped_batches,
    read_set,
    shelf_rows,
)
from models.nn.chat import Renderer
from models.nn.kernels.table import Layer, Update, Weight
from tests.tiny import make_tiny_base
from worker.train.plan import epoch_order


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny", max_position_embeddings=2048)


@pytest.fixture
def rows(base: Path, tmp_path: Path) -> RowSet:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(shelf_rows()[:40]))
    return read_set("shelves", file, renderer=Renderer.load(base))


def test_batches_hold_rows_of_like_length() -> None:
    lengths = [10 + 7 * number % 90 for number in range(400)]
    batches = grouped_batches(lengths, rows_per_step=8, steps=6, seed=1)
    assert batches == grouped_batches(lengths, rows_per_step=8, steps=6, seed=1)
    assert [len(batch) for batch in batches] == [8] * 6
    assert len({row for batch in batches for row in batch}) == 48
    padded = sum(8 * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.2 * sum(lengths[row] for batch in batches for row in batch)
    with pytest.raises(ValueError, match="no 9 batches"):
        grouped_batches(lengths[:64], rows_per_step=8, steps=9, seed=1)


def test_both_sides_read_the_same_rows_in_the_same_order(rows: RowSet, tmp_path: Path) -> None:
    work = chat_work(rows, [[5, 3], [9, 0]], folder=tmp_path)
    ours = Path(work.training_file).read_text().splitlines()
    order = epoch_order(4, seed=work.seed, epoch=0)
    assert [ours[place] for place in order] == [rows.lines[row] for row in (5, 3, 9, 0)]
    peers = [json.loads(line) for line in Path(work.token_file).read_text().splitlines()]
    assert [row["input_ids"] for row in peers] == [rows.examples[row].ids for row in (5, 3, 9, 0)]
    for row, number in zip(peers, (5, 3, 9, 0), strict=True):
        learnt = [label != IGNORED for label in row["labels"]]
        assert learnt == rows.examples[number].labelled
    assert work.tokens == tuple(
        sum(rows.lengths[row] for row in batch) for batch in ((5, 3), (9, 0))
    )


def test_full_rows_are_equally_long_and_all_labelled(
    rows: RowSet, base: Path, tmp_path: Path
) -> None:
    work = full_work(
        rows, renderer=Renderer.load(base), length=64, rows_per_step=2, steps=3, folder=tmp_path
    )
    assert (work.tokens, work.max_length) == ((128,) * 3, 64)
    for line in Path(work.token_file).read_text().splitlines():
        row = json.loads(line)
        assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_jobs_have_short_rows_of_their_own(rows: RowSet, tmp_path: Path) -> None:
    works = make_jobs(rows, jobs=2, steps=5, folder=tmp_path)
    files = [set(Path(work.training_file).read_text().splitlines()) for work in works]
    assert [(work.steps, work.rows_per_step) for work in works] == [(5, 2)] * 2
    assert not files[0] & files[1]


def test_a_seed_draws_other_rows_for_the_jobs_that_have_it(
    rows: RowSet, base: Path, tmp_path: Path
) -> None:
    renderer, found = Renderer.load(base), []
    for seed in (7, 8):
        folder = tmp_path / str(seed)
        given = {"rows_per_step": 2, "steps": 3, "folder": folder, "seed": seed}
        full = full_work(rows, renderer=renderer, length=64, **given)
        found.append([full, *make_jobs(rows, jobs=2, steps=5, folder=folder, seed=seed)])
        assert {work.seed for work in found[-1]} == {seed}
    for first, second in zip(*found, strict=True):
        assert Path(first.token_file).read_text() != Path(second.token_file).read_text()


def test_sets_are_those_of_a_folder_or_our_own(tmp_path: Path) -> None:
    assert list(find_sets(None, scratch=tmp_path)) == ["support_mail", "shelves"]
    for name in ("a", "b", "banking77"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "train_chat.jsonl").write_text(shelf_rows()[0])
    assert list(find_sets(tmp_path / "data", scratch=tmp_path)) == ["banking77"]
    with pytest.raises(FileNotFoundError):
        find_sets(tmp_path / "data" / "a", scratch=tmp_path)


def test_speed_leaves_the_first_step_out() -> None:
    assert speed({"tokens": [1000, 10, 20], "ends": [9.0, 10.0, 12.0]}) == 10.0


def test_other_rows_or_losses_are_refused(rows: RowSet, tmp_path: Path) -> None:
    work = chat_work(rows, [[0, 1], [2, 3]], folder=tmp_path)
    said = {"tokens": list(work.tokens), "losses": [2.0, 1.0], "norms": [3.0, 1.0]}
    assert check(said, said, work=work, subject=LORA)["losses"]["most"] == 0.0
    for other in (
        {"tokens": list(work.tokens)[::-1]},
        {"losses": [2.0, 1.1]},
        {"norms": [3.3, 1.0]},
    ):
        with pytest.raises(Unequal):
            check(said, {**said, **other}, work=work, subject=LORA)


def test_a_comparison_trains_the_same_curve(base: Path, rows: RowSet, tmp_path: Path) -> None:
    work = chat_work(rows, [[0, 1], [2, 3], [4, 5]], folder=tmp_path / "work")
    with Bench(base, tmp_path, *sides_below(tmp_path), pad_id=0) as bench:
        for subject in (LORA, *(kind for kind in KINDS if kind.name in ("p_tuning", "pissa"))):
            said = bench.compare(subject, work, layouts=[Layout(2)], repeats=1)
            assert said["ratio"] == pytest.approx(
                said["medians"]["ours"] / said["medians"]["peer"], rel=0.05
            )
            assert len(said["losses"]["ours"]) == len(said["losses"]["peer"]) == 3


def test_in_a_hurry_it_warms_up_once_and_for_all_weights(
    base: Path, rows: RowSet, tmp_path: Path
) -> None:
    work = chat_work(rows, [[0, 1], [2, 3], [4, 5]], folder=tmp_path / "work")
    subjects = [LORA, *(kind for kind in KINDS if kind.name in ("ia3", "full"))]
    with Bench(base, tmp_path, *sides_below(tmp_path), pad_id=0, patience=600) as bench:
        said = [bench.compare(one, work, layouts=[Layout(2)], repeats=1) for one in subjects]
    tried = [list(one["peer_layouts_tried"]) for one in said]
    assert tried == [[str(Layout(2))], [], [str(Layout(2))]]


def sides_below(folder: Path) -> list[Side]:
    """Return ours and the peer, running, on one thread each."""
    return [
        Side(name, f"benchmarks.train.{name}", log=folder / name, variables=environment(threads=1))
        for name in ("ours", "peer")
    ]


def test_jobs_in_line_are_published(base: Path, rows: RowSet, tmp_path: Path) -> None:
    data = tmp_path / "data"
    variables = {
        **environment(threads=1),
        "GRAFTWORK_BASE": "tiny",
        "GRAFTWORK_CACHE_DIR": str(tmp_path / "cache"),
        "GRAFTWORK_DATA_DIR": str(data),
    }
    pull = ["-m", "cli", "pull", "tiny", "--from", str(base), "--data-dir", str(data)]
    subprocess.run([sys.executable, *pull], env={**os.environ, **variables}, check=True)
    works = make_jobs(rows, jobs=2, steps=2, folder=tmp_path / "jobs")
    loop = {"n_epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    jobs = [
        {"training_file": work.training_file, "method": LORA.method, "loop": loop, "seed": 7}
        for work in works
    ]
    line = Side("line", "benchmarks.train.line", log=tmp_path / "log", variables=variables)
    with line:
        said = line.ask({"jobs": jobs, "variables": variables})
    assert said["tokens"] == [sum(work.tokens) for work in works]
    assert [len(losses) for losses in said["losses"]] == [2, 2]
    assert 0 < said["start_seconds"] < said["seconds"]


def test_a_gang_that_trained_other_tokens_is_refused(rows: RowSet, tmp_path: Path) -> None:
    works = make_jobs(rows, jobs=2, steps=2, folder=tmp_path)
    trained = [sum(work.tokens) for work in works]
    losses = [2.0, 1.0]
    gang = {"tokens": trained, "losses": [losses] * 2}
    alone = {"tokens": trained[:1], "losses": [losses]}
    script = {"tokens": list(works[0].tokens), "losses": losses}
    assert _check(works, gang, alone, [script])[0]["most"] == 0.0
    for said in (
        ({**gang, "tokens": [trained[0], 1]}, alone, [script]),
        (gang, {**alone, "tokens": [1]}, [script]),
        (gang, alone, [{**script, "tokens": script["tokens"][::-1]}]),
        (gang, {**alone, "losses": [[2.0, 1.0 + 1e-7]]}, [script]),
    ):
        with pytest.raises(Unequal):
            _check(works, *said)


def test_what_one_job_took_is_counted_eight_times_but_for_the_workers_start() -> None:
    assert _times({"start_seconds": 2.0, "seconds": 7.0}, 8) == 42.0


def test_products_are_counted_where_ops_are_called() -> None:
    weight = Weight(torch.zeros(5, 4))
    update = Update((1, 3), (0, 5), torch.zeros(2, 4), torch.zeros(5, 2), 1.0)
    count, states = COUNTS["project"], torch.zeros(7, 4)
    assert count(states, weight=weight) == 2 * 7 * 20
    assert count(states, weight=weight, updates=[update]) == 2 * 7 * 20 + 2 * 2 * (2 * 8 + 3 * 10)
    states.requires_grad_()
    assert count(states, weight=weight) == 4 * 7 * 20
    assert count(states, weight=weight, updates=[update]) == 4 * 7 * 20 + 2 * 2 * 3 * (8 + 10)
    layer = Layer(weight, weight, weight, weight, gains_d=(states, states), epsilons=(0.0, 0.0))
    both = {"layers": [layer, layer], "heads": None}
    trained = Update((0, 7), (0, 5), torch.zeros(2, 4).requires_grad_(), torch.zeros(5, 2), 1.0)
    frozen = COUNTS["layers"](states.detach(), states.detach(), updates=[[]] * 8, **both)
    assert frozen == 8 * 2 * 7 * 20
    assert COUNTS["layers"](states, states, updates=[[]] * 8, **both) == 8 * 4 * 7 * 20
    updates = [[], [trained], *[[]] * 6]
    found = COUNTS["layers"](states.detach(), states.detach(), updates=updates, **both)
    assert found == (2 * 2 + 6 * 4) * 7 * 20 + 2 * 7 * (2 * 8 + 3 * 10)
    targets = torch.zeros(7, dtype=torch.int64)
    assert COUNTS["linear_cross_entropy"](states, weight=weight, targets_n=targets) == 4 * 7 * 20
