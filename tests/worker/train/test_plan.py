import numpy as np
import pytest

from models.spec import LoopSpec
from worker.train.data import DataCounts, Examples
from worker.train.plan import TIME_STEPS, Plan, epoch_order


def plan(lengths, **values):
    offsets = np.cumsum([0, *lengths])
    examples = Examples(
        np.zeros(offsets[-1], dtype=np.int32),
        np.zeros(offsets[-1], dtype=bool),
        offsets,
        DataCounts(),
    )
    loop = LoopSpec(**{"n_epochs": 2, "batch_size": 2, "learning_rate": 0.1, **values})
    return Plan(examples, loop=loop, seed=1)


def test_an_order_takes_eight_bytes_a_row():
    assert epoch_order(1000, seed=1, epoch=0).nbytes == 8000


def test_each_plan_of_a_gang_draws_the_order_of_an_epoch_once(monkeypatch):
    def spy(rows, *, seed, epoch):
        drawn.append(epoch)
        return epoch_order(rows, seed=seed, epoch=epoch)

    drawn = []
    monkeypatch.setattr("worker.train.plan.epoch_order", spy)
    plans = [plan([5] * 8) for _ in range(8)]
    for step in range(8):
        for one in plans:
            one.batch(step)
            one.tokens(step)
    assert drawn == [0] * 8 + [1] * 8


def test_order_is_a_function_of_seed_and_epoch():
    assert np.array_equal(epoch_order(50, seed=1, epoch=0), epoch_order(50, seed=1, epoch=0))
    orders = {tuple(epoch_order(50, seed=s, epoch=e)) for s in range(2) for e in range(2)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_epochs_end_a_run_and_their_last_batch_may_be_short():
    found = plan([5] * 5)
    assert (found.steps_per_epoch, found.total_steps) == (3, 6)
    assert [len(found.batch(step)) for step in range(6)] == [2, 2, 1] * 2
    assert [step for step in range(1, 7) if found.ends_epoch(step)] == [3, 6]
    assert sorted(np.concatenate([found.batch(step) for step in range(3)])) == list(range(5))


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (10, 1), (11, 2), (25, 3), (26, 4), (60, 7)])
def test_tokens_end_a_run_at_the_step_that_reaches_them(tokens, steps):
    found = plan([5] * 5, max_tokens=tokens)
    assert found.total_steps == steps
    assert sum(found.tokens(step) for step in range(steps)) >= tokens
    assert sum(found.tokens(step) for step in range(steps - 1)) < tokens
    assert found.is_over(step=steps, seconds=0)
    assert not found.is_over(step=steps - 1, seconds=9e9)


def test_time_ends_a_run_and_moves_its_schedule():
    found = plan([5] * 5, max_seconds=10)
    assert not found.is_over(step=1000, seconds=9.9)
    assert found.is_over(step=1, seconds=10)
    assert found.schedule(step=3, seconds=5) == (TIME_STEPS // 2, TIME_STEPS)
    assert found.schedule(step=3, seconds=99) == (TIME_STEPS - 1, TIME_STEPS)
    assert found.seconds_left(step=3, seconds=4, pace=99) == 6
