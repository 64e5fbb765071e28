import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidData
from worker.compare.questions import Questions, choose_metric, read_questions


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Questions:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(path, **{"metric": "auto", "most": 100, "seed": 0} | options)


@pytest.mark.parametrize(
    ("labels", "rows", "metric"),
    [
        (2, 10, "accuracy"),
        (2, 9, "bleu"),
        (1, 10, "bleu"),
        (50, 250, "accuracy"),
        (51, 999, "bleu"),
    ],
)
def test_a_small_set_of_answers_is_a_set_of_labels(labels: int, rows: int, metric: str) -> None:
    assert choose_metric("auto", labels=labels, rows=rows) == metric
    assert choose_metric("exact_match", labels=labels, rows=rows) == "exact_match"


def test_labels_are_asked_row_by_row(tmp_path: Path) -> None:
    rows = [
        chat("one" if number < 3 else f"q{number}", ["yes", "no"][number % 2])
        for number in range(12)
    ]
    found = read(tmp_path, rows)
    assert (found.metric, found.labels, len(found.items)) == ("accuracy", ["no", "yes"], 12)
    assert found.items[0].references == ("yes",)
    assert [turn["role"] for turn in found.items[0].messages or []] == ["system", "user"]


def test_answers_to_the_same_prompt_are_references_of_one_question(tmp_path: Path) -> None:
    rows = [chat("a", "one"), chat("b", "two"), chat("a", "three")]
    found = read(tmp_path, rows)
    assert (found.metric, found.labels) == ("bleu", [])
    assert [item.references for item in found.items] == [("one", "three"), ("two",)]


def test_the_last_trained_answer_is_asked_for(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "weight": 0},
        ]
    }
    [question] = read(tmp_path, [row]).items
    assert question.references == ("b",)
    assert question.messages == [{"role": "user", "content": "a"}]


def test_completions_are_asked_as_text(tmp_path: Path) -> None:
    [question] = read(tmp_path, [{"prompt": "1 + 1 =", "completion": " 2"}]).items
    assert (question.text, question.messages, question.references) == ("1 + 1 =", None, (" 2",))


def test_a_seed_chooses_the_questions(tmp_path: Path) -> None:
    rows = [chat(f"q{number}", f"answer {number}") for number in range(50)]
    first, again, other = (read(tmp_path, rows, most=5, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert len(first.items) == 5
    assert first.items != other.items


def test_nothing_to_ask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidData):
        read(tmp_path, [{"text": "only text"}])
