"""The training data as a method looks at it: which rows a search reads."""

import numpy as np
import pytest

from models.nn.chat import Renderer
from models.nn.methods import parse_method
from models.spec import LoopSpec
from worker.train.files import Files
from worker.train.problem import TrainingProblem

WORDS = range(24)
"""How many more words than the first each row has."""


@pytest.fixture
def problem(make_job, base_folder, backbone):
    rows = [{"text": f"So {'long ' * words}"} for words in WORDS]
    method = {"type": "hard_prompt", "prompt_length": 3}
    order = make_job().order(rows=rows, method=method, loop={"batch_size": 8})
    return TrainingProblem(
        Files(
            order,
            renderer=Renderer.load(base_folder),
            max_length=512,
            stay_alive=lambda: None,
        ),
        method=parse_method(method),
        backbone=backbone,
        loop=LoopSpec.model_validate(order.spec["loop"]),
        seed=3,
        check=lambda: None,
    )


def test_a_search_reads_rows_of_all_lengths(problem):
    lengths = np.diff(problem._files.training.offsets)
    most = problem._loop.micro_batch_tokens
    assert lengths.sum() / 3 > 2 * most > 2 * lengths.max()
    batches = [set(problem._batch(step).rows) for step in range(3 * 40)]
    assert set.union(*batches) == set(WORDS)
    assert max(int(lengths[list(rows)].sum()) for rows in batches) <= most
    assert batches[:9] == [set(problem._batch(step).rows) for step in range(9)]


def test_texts_that_are_compared_are_read(problem, renderer):
    texts = ["one", "a longer one", ""]
    features = problem.text_features(texts, "mean")
    assert len(features) == len(texts)
    assert problem.tokens_read == sum(len(renderer.encode(text) or [0]) for text in texts)


def test_a_row_that_is_longer_than_a_micro_batch_is_read_alone(problem):
    problem._task.max_tokens = 1
    assert {len(problem._batch(step).rows) for step in range(3)} == {1}
