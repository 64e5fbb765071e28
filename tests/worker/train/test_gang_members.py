"""Who joins, leaves or fails in a gang is its own affair, and turns are shared by tokens."""

import shutil
from pathlib import Path

import pytest
import torch

from models.spec import Broke, CheckpointSaved, Failed
from tests.worker.train.conftest import ROWS, Recording, values_of, weights_hash
from tests.worker.train.gangs import JOBS, check_equal, run_together
from worker.train import gang as module
from worker.train.gang import Gang
from worker.train.run import train
from worker.train.turns import LEAD, Dropped, Turn


def tokens_of(channel):
    """How many tokens a job has trained on."""
    return max(getattr(message, "trained_tokens", 0) for message in channel.messages)


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        (
            "non_finite_loss",
            {
                "method": {"type": "lora", "rank": 4},
                # Decay by ten times itself a step: the tensors grow without bound.
                "loop": {
                    "learning_rate": 10.0,
                    "weight_decay": 1.0,
                    "scheduler": "constant",
                    "warmup_ratio": 0.0,
                    "n_epochs": 50,
                },
            },
        ),
        ("invalid_training_file", {"rows": "{"}),
    ],
)
def test_a_failure_is_its_own_jobs(make_order, code, bad):
    orders = [make_order(**JOBS[0]), make_order(**bad), make_order(**JOBS[1])]
    first, failed, last = run_together(orders)
    assert failed[-1].code == code
    check_equal(first, run_together([make_order(**JOBS[0])])[0])
    check_equal(last, run_together([make_order(**JOBS[1])])[0])


def test_a_bug_in_one_job_is_its_own(make_order):
    broken = make_order(**JOBS[3])
    Path(broken.training_file).unlink()
    said, other = run_together([broken, make_order(**JOBS[0])])
    assert [type(message).__name__ for message in said] == ["Broke"]
    check_equal(other, run_together([make_order(**JOBS[0])])[0])


def test_one_is_paused_and_joins_again_while_the_others_go_on(make_order):
    orders = [make_order(**job) for job in JOBS[:3]]
    channels = [Recording(), Recording(), Recording(asks_after=4)]
    gang = Gang()
    for order, channel in zip(orders, channels, strict=True):
        gang.join(train(order, channel), channel)
    while len(gang.members) == 3:
        gang.beat()
    assert type(channels[2].messages[-1]).__name__ == "Stopped"
    again = Recording()
    gang.join(train(orders[2], again), again)
    while gang.members:
        gang.beat()
    alone = [run_together([make_order(**job)])[0] for job in JOBS[:3]]
    check_equal(channels[0].messages, alone[0])
    check_equal(channels[1].messages, alone[1])
    assert weights_hash(again.messages) == weights_hash(alone[2])
    assert values_of(channels[2].messages) | values_of(again.messages) == values_of(alone[2])


def needing(tokens, *, held, room):
    """A job that holds so much of the memory that all share, for three turns."""
    if sum(held) + tokens > room:
        raise torch.OutOfMemoryError
    held.append(tokens)
    for _ in range(3):
        yield Turn(tokens)
    held.remove(tokens)


@pytest.mark.parametrize("alone", [False, True])
def test_memory_that_others_hold_is_no_fault_of_the_job_that_lacks_it(alone):
    held, large, other = [], Recording(), Recording()
    gang = Gang()
    if not alone:
        gang.join(needing(6, held=held, room=10), other)
    gang.join(needing(6 if not alone else 11, held=held, room=10), large)
    while gang.members:
        gang.beat()
    (told,) = large.messages
    assert told.code == "out_of_memory"
    assert isinstance(told, Failed if alone else Broke)
    assert alone or told.alone
    assert not other.messages


class Unwanted(Recording):
    """A channel of a job that is cancelled after some messages."""

    def check(self):
        if len(self.messages) >= 4:
            raise Dropped


def test_one_is_dropped_without_a_word_more(make_order):
    channels = [Unwanted(), Recording()]
    dropped, other = run_together([make_order(**job) for job in JOBS[:2]], channels)
    assert len(dropped) == 4
    check_equal(other, run_together([make_order(**JOBS[1])])[0])


def test_a_late_one_joins_between_steps(make_order, together):
    first, late = Recording(), Recording()
    gang = Gang()
    gang.join(train(make_order(**JOBS[0]), first), first)
    gang.beat()
    gang.beat()
    gang.join(train(make_order(**JOBS[3]), late), late)
    while gang.members:
        gang.beat()
    assert together[:2] == [1, 1]
    assert max(together) == 2
    check_equal(first.messages, run_together([make_order(**JOBS[0])])[0])
    check_equal(late.messages, run_together([make_order(**JOBS[3])])[0])


def test_what_failed_together_is_done_again_alone(make_order, monkeypatch):
    """Whoever is at fault fails then; the others lose a step's time, and no gradient twice."""
    score_together, lost = module.score_together, []

    def fail_third(batches):
        scores = score_together(batches)  # gradients are there already
        if len(batches) > 1:
            lost.append(len(batches))
            if len(lost) == 3:
                raise RuntimeError("no luck")
        return scores

    jobs = [{**JOBS[0], "loop": {"micro_batch_tokens": 60}}, JOBS[3]]
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    monkeypatch.setattr(module, "score_together", fail_third)
    for said, expected in zip(
        run_together([make_order(**job) for job in jobs]), alone, strict=True
    ):
        check_equal(said, expected)
    assert len(lost) == 3


def test_turns_are_shared_by_tokens_and_not_by_jobs(make_order):
    sizes = [{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 2, "max_tokens": 10**6}]
    channels = [Recording() for _ in sizes]
    gang = Gang()
    for size, channel in zip(sizes, channels, strict=True):
        order = make_order(rows=ROWS, loop={"n_epochs": 50, **size}, method={"type": "ia3"})
        gang.join(train(order, channel), channel)
    for _ in range(60):
        gang.beat()
    had = [tokens_of(channel) for channel in channels]
    assert len(gang.members) == 3
    assert min(had) > 2 * LEAD
    assert max(had) - min(had) <= 2 * LEAD
    for member in gang.members:
        member.work.close()


class Stored(Recording):
    """A channel to whom stores every adapter that it hears of."""

    def say(self, message):
        super().say(message)
        if isinstance(message, CheckpointSaved) and message.adapter_folder:
            shutil.rmtree(message.adapter_folder)


def test_others_go_on_while_one_waits_for_the_store(make_order, monkeypatch):
    monkeypatch.setattr("worker.train.checkpoint.MOST_ADAPTER_BYTES", 1)
    orders = [make_order(rows=ROWS, loop={"n_epochs": epochs}) for epochs in (2, 20)]
    waiting, other = channels = [Recording(), Stored()]
    gang = Gang()
    for order, channel in zip(orders, channels, strict=True):
        gang.join(train(order, channel), channel)
    while len(gang.members) == 2:
        gang.beat()
    assert type(other.messages[-1]).__name__ == "Succeeded"
    assert tokens_of(other) > tokens_of(waiting) + 2 * LEAD
    (saved,) = [one for one in waiting.messages if isinstance(one, CheckpointSaved)]
    shutil.rmtree(saved.adapter_folder)
    while gang.members:
        gang.beat()
    assert type(waiting.messages[-1]).__name__ == "Succeeded"


def test_a_newcomer_neither_catches_up_nor_waits(make_order):
    first, late = Recording(), Recording()
    gang = Gang()
    loop = {"n_epochs": 500}
    gang.join(train(make_order(loop=loop, method={"type": "ia3"}), first), first)
    for _ in range(30):
        gang.beat()
    before = tokens_of(first)
    gang.join(train(make_order(loop=loop, method={"type": "ia3"}), late), late)
    for _ in range(10):
        gang.beat()
    gained = tokens_of(first) - before
    assert gained > 0
    assert abs(tokens_of(late) - gained) <= LEAD
    for member in gang.members:
        member.work.close()
