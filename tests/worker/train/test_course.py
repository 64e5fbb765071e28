"""When a run asks its method for terms."""

import pytest

from models.nn.methods import parse_method
from models.nn.methods.lora import Lora
from models.nn.terms import LinearTerm, Terms
from models.spec import LoopSpec
from tests.worker.train.conftest import Recording
from worker.train import course
from worker.train.checkpoint import Progress
from worker.train.gang import Gang
from worker.train.run import train


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        ({}, 90.0),
        ({"max_seconds": 30.0}, 10.0),  # of which 20 are spent
        ({"max_seconds": 19.0}, 0.0),
        ({"max_seconds": 500.0}, 90.0),
        ({"max_tokens": 400}, 30.0),  # 10 steps took 100: 30 more
        ({"max_tokens": 99}, 0.0),
        ({"max_tokens": 10**6}, 90.0),
    ],
)
def test_a_search_ends_by_its_steps_or_by_its_budget(budget, left):
    loop = LoopSpec(n_epochs=1, batch_size=1, learning_rate=0.1, **budget)
    search = course.BySearch(
        method=parse_method({"type": "hard_prompt", "algorithm": "gcg", "steps": 100}),
        tensors={},
        problem=None,
        loop=loop,
        seed=3,
    )
    progress = Progress(run_digest="", step=10, trained_tokens=100, seconds=20.0)
    assert search.seconds_left(progress, pace=1.0) == pytest.approx(left)
    assert search.is_over(progress) == (left == 0.0)
    assert search.seconds_left(Progress(run_digest=""), pace=0.0) == 0.0


def closed_over(method, t, place, base):
    """Say what LoRA says by a function, which nobody can look into."""
    if (down := t.get(f"{place}.lora_A")) is None:
        return None
    update_oi = t[f"{place}.lora_B"] @ down
    return LinearTerm(function=lambda x_ti, y_to: y_to + x_ti @ update_oi.T.to(x_ti))


@pytest.mark.parametrize(
    ("method", "says", "lasting"),
    [
        ({"type": "lora", "rank": 2}, None, True),
        ({"type": "lora", "rank": 2}, closed_over, False),
        ({"type": "dora", "rank": 2}, None, False),
    ],
)
def test_terms_that_hold_nothing_but_tensors_of_the_method_are_asked_for_once(
    make_job, monkeypatch, method, says, lasting
):
    if says is not None:
        monkeypatch.setattr(Lora, "linear", says)
    asked = []

    class Spy:
        @staticmethod
        def of(*arguments, **named):
            asked.append(None)
            return Terms.of(*arguments, **named)

    monkeypatch.setattr(course, "Terms", Spy)
    channel, gang = Recording(), Gang()
    order = make_job().order(method=method, loop={"n_epochs": 1, "micro_batch_tokens": 1024})
    gang.join(train(order, channel), channel)
    while gang.members:
        gang.beat()
    losses = [m.values["train_loss"] for m in channel.messages if hasattr(m, "values")]
    steps = len(losses)
    assert steps > 3
    assert len(set(losses)) == steps
    # One more is asked for before the first step: whether they leave the trunk alone.
    assert len(asked) == (1 if lasting else 1 + steps)
