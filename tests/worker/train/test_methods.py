"""What training promises of every method, asked of each by its presence; none is named here."""

from math import log

import pytest

from models.nn.methods import METHODS
from models.nn.methods.base import Method
from tests.tiny import make_tiny_base
from tests.worker.train.conftest import Job, carry_out, values_of, weights_hash

CASES = [
    pytest.param(cls(**example), id=f"{kind}-{index}")
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
]
MOODS = {"happy": "good", "glad": "good", "sad": "bad", "angry": "bad"}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"{'so ' * (n % 3)}{mood}"},
            {"role": "assistant", "content": answer},
        ]
    }
    for n in range(6)
    for mood, answer in MOODS.items()
]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"), num_hidden_layers=3)


@pytest.fixture
def make_job(tmp_path, base_folder):
    return lambda name="job": Job(tmp_path / name, base_folder)


def block(method: Method) -> dict:
    """Return the configuration as posted; labels are left to the data."""
    posted = method.model_dump(mode="json", by_alias=True)
    return posted if method.class_labels is None else {**posted, "labels": []}


@pytest.mark.parametrize("method", CASES)
def test_a_paused_run_ends_as_the_unbroken_one_to_the_bit(make_job, method):
    loop = {"n_epochs": 2, "batch_size": 6, "learning_rate": method.learning_rate}
    order = {"rows": ROWS, "validation": ROWS[:8], "method": block(method), "loop": loop}
    whole = carry_out(make_job("whole").order(**order))
    assert type(whole[-1]).__name__ == "Succeeded"
    broken = make_job("broken").order(**order)
    said = []
    for asks_after in (3, 5, 4, None):  # messages of each stretch until a pause is asked for
        said += carry_out(broken, asks_after=asks_after)
        if type(said[-1]).__name__ == "Succeeded":
            break
    assert weights_hash(said) == weights_hash(whole)
    assert values_of(said) == values_of(whole)
    assert "valid_loss" in whole[-1].metrics


LEARNING = [case for case in CASES if case.values[0].search_steps <= 1]
"""A longer search measures each step on another batch; its own tests hold it."""


@pytest.mark.parametrize("method", LEARNING)
def test_the_loss_falls_on_a_small_task(make_job, method):
    epochs = 12
    loop = {
        "n_epochs": epochs,
        "batch_size": 8,
        "learning_rate": method.learning_rate,
        "scheduler": "constant",
    }
    said = carry_out(make_job().order(rows=ROWS, method=block(method), loop=loop))
    losses = [
        values["train_loss"]
        for _, values in sorted(values_of(said).items())
        if "train_loss" in values
    ]
    if len(losses) > 1:
        steps = len(losses) // epochs
        assert sum(losses[-steps:]) < sum(losses[:steps])  # of the same rows
    elif losses:
        assert losses[0] < log(2)  # worse than to answer at random
