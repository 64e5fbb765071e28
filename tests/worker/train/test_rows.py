import json

import torch

from models.nn.chat import Example
from worker.train.course import seeded
from worker.train.data import DataCounts, keep_end
from worker.train.rows import describe_prompts


def describe(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return describe_prompts(path)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_what_all_rows_share_is_how_a_bare_text_is_put(tmp_path):
    asked = [("user", "a"), ("assistant", "b")]
    same = [chat(("system", "Be brief."), *asked)] * 2
    assert describe(tmp_path, *same) == {"format": "chat", "system": "Be brief.", "lead": ""}
    assert describe(tmp_path, *same, chat(*asked))["system"] is None
    spaced = [{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d"}]
    assert describe(tmp_path, *spaced) == {"format": "completion", "system": None, "lead": " "}
    assert describe(tmp_path, *spaced, {"prompt": "a", "completion": "b"})["lead"] == ""
    assert describe(tmp_path, {"text": "a"})["format"] == "text"


def test_a_long_question_keeps_its_end():
    counts = DataCounts()
    kept = keep_end(Example([1, 2, 3, 4], [False] * 4), line=1, max_length=3, counts=counts)
    assert kept.ids == [2, 3, 4]
    assert (counts.rows_kept, counts.rows_truncated) == (1, 1)


def test_each_step_of_a_search_draws_anew_and_again_the_same():
    drawn = [torch.rand(3, generator=seeded(5, step)).tolist() for step in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
