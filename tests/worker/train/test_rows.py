import json

import pytest
import torch

from models.nn.chat import Example
from models.spec import Succeeded
from tests.worker.train.conftest import carry_out
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


@pytest.mark.parametrize(
    ("method", "before"),
    [
        ({"type": "soft_prompt", "prompt_length": 200}, 200),
        ({"type": "prefix", "prefix_length": 256}, 256),
        ({"type": "lora", "rank": 1}, 0),
    ],
    ids=["prompt", "prefix", "no rows"],
)
def test_a_row_is_kept_as_far_as_the_context_has_room(make_job, backbone, method, before):
    context = backbone.shape.context
    loop = {"n_epochs": 1, "micro_batch_tokens": context, "max_sequence_length": 2 * context}
    rows = [{"text": "a" * 2 * context}, {"text": "b"}]
    validated, *_, ended = carry_out(make_job().order(rows=rows, method=method, loop=loop))
    assert validated.report["longest_row"] == context - before
    assert validated.report["rows_truncated"] == 1
    assert isinstance(ended, Succeeded)


def test_a_prompt_beyond_half_of_the_context_is_named(make_job, backbone):
    method = {"type": "soft_prompt", "prompt_length": backbone.shape.context}
    failed = carry_out(make_job().order(method=method))[-1]
    assert (failed.code, failed.param) == ("invalid_value", "peft.prompt_length")


def test_each_step_of_a_search_draws_anew_and_again_the_same():
    drawn = [torch.rand(3, generator=seeded(5, step)).tolist() for step in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
