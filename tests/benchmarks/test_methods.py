"""The benchmark of methods: its figures by hand, and a small run of the whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.methods.data import find_data
from benchmarks.methods.slots import exact_slots, values_in
from tests.tiny import make_tiny_base

MEANING = "Describe it.\n\nname[Cocum], eatType[coffee shop], familyFriendly[yes], area[riverside]"


def test_slots_are_the_values_that_can_be_said() -> None:
    assert values_in(MEANING) == ["Cocum", "coffee shop", "riverside"]
    assert values_in('{"a": [1, 2]}') == []


def test_exact_slots_is_the_share_of_values_that_were_said() -> None:
    lines = [
        {"prompt": [{"role": "user", "content": MEANING}], "answer": "Cocum is by the Riverside."},
        {"prompt": "name[Giraffe]", "answer": "A giraffe."},
    ]
    assert exact_slots(lines) == pytest.approx(3 / 4)
    assert exact_slots([{"prompt": "No slots.", "answer": "None."}]) is None


def test_rows_are_chosen_by_a_seed(tmp_path: Path) -> None:
    (tmp_path / "train_chat.jsonl").write_text("a\nb\n")
    (tmp_path / "dev_chat.jsonl").write_text("".join(f"{n}\n" for n in range(50)))
    chosen = []
    for number, seed in enumerate((1, 1, 2)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        data = find_data(tmp_path, rows=5, seed=seed, scratch=scratch)
        assert data.rows == {"training": 2, "validation": 5}
        chosen.append(data.valid.read_text())
    assert chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(FileNotFoundError):
        find_data(tmp_path / "0", rows=5, seed=1, scratch=tmp_path)


def test_a_small_run_leaves_figures_and_plots(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "GRAFTWORK_BASE": "tiny",
        "GRAFTWORK_CACHE_DIR": str(tmp_path / "cache"),
        "GRAFTWORK_WORKER__POLL_SECONDS": "0.3",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("GRAFTWORK_DATA_DIR", None)
    base = make_tiny_base(tmp_path / "base", max_position_embeddings=1024)
    pull = ["-m", "cli", "pull", "tiny", "--from", str(base), "--data-dir", str(tmp_path / "cache")]
    subprocess.run([sys.executable, *pull], env=environment, check=True)
    size = ["--tokens", "2000", "--rows", "6", "--methods", "lora:rank=2,ia3"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.methods", *size, "--out", str(tmp_path / "results")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    printed = json.loads(done.stdout.splitlines()[-1])
    saved = json.loads((tmp_path / "results" / "support_mail.json").read_text())
    assert printed == saved
    assert [row["label"] for row in saved["results"]] == ["base", "lora rank=2", "ia3"]
    assert {row["status"] for row in saved["results"]} == {"done"}
    assert (saved["metric"], saved["budget"], saved["seed"]) == ("bleu", {"tokens": 2000}, 7)
    assert all(row["trained_tokens"] >= 2000 for row in saved["results"][1:])
    assert set(saved["versions"]) == {"torch", "transformers", "peft", "graftwork"}
    assert (tmp_path / "results" / "support_mail.svg").stat().st_size > 1000
    assert (tmp_path / "results" / "support_mail.png").stat().st_size > 1000
    assert "lora rank=2" in done.stdout
