import json
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from core.errors import InvalidData, InvalidRequest
from worker.train.data import micro_batches, read_examples
from worker.train.rows import render_example


@pytest.fixture
def read(tmp_path, renderer):
    def read(rows, *, max_length=512):
        path = tmp_path / "rows.jsonl"
        path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
        return read_examples(
            path,
            folder=tmp_path / "work",
            render=partial(render_example, renderer=renderer),
            max_length=max_length,
            param="training_file",
        )

    return read


def chat(question, answer, **extra):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **extra},
        ]
    }


def test_only_answers_are_labelled(read, renderer):
    examples = read([chat("Hello", "Hi"), chat("a", "b")])
    text = [renderer.decode(examples.ids[examples.labelled].tolist())]
    assert text == ["Hi<|im_end|>b<|im_end|>"]
    assert examples.labels([0, 1]) == examples.counts.labelled_tokens == 5
    assert examples.counts.tokens == len(examples.ids) == examples.offsets[-1]
    assert examples.counts.longest_row == examples.length(0)


def test_weights_choose_the_turns(read, renderer):
    row = chat("a", "no", weight=0)
    row["messages"] += chat("b", "yes", weight=1)["messages"]
    examples = read([row])
    assert renderer.decode(examples.ids[examples.labelled].tolist()) == "yes<|im_end|>"


def test_other_formats(read, renderer):
    examples = read([{"prompt": "one ", "completion": "two"}])
    assert renderer.decode(examples.ids.tolist()) == "one two<|im_end|>"
    assert renderer.decode(examples.ids[examples.labelled].tolist()) == "two<|im_end|>"
    examples = read([{"text": "one two"}])
    assert examples.labels([0]) == len("one two")


def test_long_rows_are_cut_and_hopeless_ones_dropped(read):
    rows = [chat("a", "short"), chat("a", "long" * 10), chat("never " * 10, "seen")]
    examples = read(rows, max_length=40)
    assert examples.counts.rows_kept == 2
    assert examples.counts.rows_truncated == 2
    assert examples.counts.rows_dropped == 1
    assert examples.counts.dropped_lines == [3]
    assert [examples.length(row) for row in range(2)] == [len(read(rows[:1]).ids), 40]


def test_a_file_of_which_nothing_is_left_is_refused(read):
    with pytest.raises(InvalidRequest, match="max_sequence_length") as caught:
        read([chat("never " * 10, "seen")], max_length=20)
    assert caught.value.code == "no_trainable_tokens"
    assert caught.value.param == "training_file"


def test_bad_rows_are_named(read):
    with pytest.raises(InvalidData) as caught:
        read('{"text": "a"}\n{\n[]')
    assert [problem["line"] for problem in caught.value.problems] == [2, 3]
    assert caught.value.param == "training_file"


def test_what_the_template_refuses_is_a_problem_of_its_line(read, renderer, monkeypatch):
    def refuse(messages):
        raise InvalidRequest("Turns must alternate.", code="invalid_messages", param="messages")

    monkeypatch.setattr(renderer, "example", refuse)
    with pytest.raises(InvalidData, match="Line 1: Turns") as caught:
        read([chat("a", "b")])
    assert caught.value.problems[0]["code"] == "invalid_messages"


def test_a_stream_predicts_labels_within_each_sequence(read):
    examples = read([chat("Hello", "Hi"), {"messages": chat("a", "b")["messages"][1:]}])
    stream = examples.pack([1, 0], device="cpu")
    wanted = np.concatenate([examples.ids[examples._slice(row)] for row in (1, 0)])
    targets = np.concatenate([examples.labelled[examples._slice(row)] for row in (1, 0)])
    assert stream.rows == (1, 0)
    assert stream.tokens == len(wanted)
    assert stream.targets_n.tolist() == wanted[targets].tolist()
    sequences = torch.split(stream.ids_t, list(stream.lengths))
    for sequence, row in zip(sequences, stream.rows, strict=True):
        assert sequence.tolist() == examples.ids[examples._slice(row)][: len(sequence)].tolist()
    labels = [examples.labels([row]) for row in stream.rows]
    assert labels == [2, 3]
    ends = np.cumsum(stream.lengths)
    read = [np.arange(end - count, end) for end, count in zip(ends, labels, strict=True)]
    assert stream.rows_n.tolist() == np.concatenate(read).tolist()


def test_a_row_ends_in_its_stream_where_its_last_label_is_predicted(read, renderer):
    asked = chat("a", "yes")["messages"] + chat("b", "no", weight=0)["messages"]
    examples = read([{"messages": asked}, chat("c", "d")])
    stream = examples.pack([0, 1], device="cpu")
    sequences = torch.split(stream.ids_t, list(stream.lengths))
    assert renderer.decode(sequences[0].tolist()).endswith("assistant\nyes")
    assert renderer.decode(sequences[1].tolist()).endswith("assistant\nd")
    unlabelled = replace(examples, labelled=np.zeros(len(examples.ids), dtype=np.bool_))
    whole = unlabelled.pack([0, 1], device="cpu")
    assert whole.ids_t.tolist() == examples.ids.tolist()
    assert not len(whole.rows_n)


def test_the_first_token_of_a_row_is_no_label(read):
    examples = read([{"text": "ab"}, {"text": "cd"}])
    examples = replace(examples, labelled=np.ones(len(examples.ids), dtype=np.bool_))
    stream = examples.pack([0, 1], device="cpu")
    assert stream.lengths == (2, 2)
    assert stream.rows_n.tolist() == [0, 1, 2, 3]
    assert stream.targets_n.tolist() == examples.ids[[1, 2, 4, 5]].tolist()
    assert examples.labels([0, 1]) == 4


def test_memory_does_not_grow_with_the_tokens(read, tmp_path):
    read([{"text": "warm up"}])
    rows = "\n".join([json.dumps({"text": "a" * 500})] * 2000)
    tracemalloc.start()
    examples = read(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert examples.counts.tokens == 2000 * 501
    assert peak - 2 * len(rows) < 500_000  # the text of the test itself, and a byte for two tokens
    assert not list((tmp_path / "work").iterdir())


def test_micro_batches_keep_to_their_budget(read):
    examples = read([{"text": "a" * n} for n in (5, 90, 30, 31, 1, 7)])
    streams = list(micro_batches(examples, np.arange(6), max_tokens=64, device="cpu"))
    assert [stream.tokens for stream in streams] == [91, 63, 16]
    assert sorted(row for stream in streams for row in stream.rows) == list(range(6))
