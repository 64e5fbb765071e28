"""The trainer as it really runs: a process with pipes, killed, told and left alone."""

import signal
import time

import pytest

from tests.worker.train.conftest import Job, carry_out, finish, read, tell, values_of, weights_hash

LONG = {"n_epochs": 1000, "scheduler": "constant"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, base_folder):
    return finish(start(Job(tmp_path_factory.mktemp("unbroken"), base_folder)))


def start(job, loop=None, *, crash="", **values):
    job.order(loop=loop, **values)
    return job.start(GRAFTWORK_CRASH=crash)


def finish_killed(child):
    child.stdout.close()
    child.stdin.close()
    child.wait()


def read_until(child, name):
    """Read messages up to one of a type."""
    while type(message := read(child.stdout.readline())).__name__ != name:
        pass
    return message


@pytest.mark.parametrize("command", ["pause", "stop"])
def test_told_to_stop_it_saves_and_goes_on_later(make_job, command):
    job = make_job()
    child = start(job, LONG)
    read_until(child, "Metrics")
    tell(child, f"{command} {job.folder.name}")
    messages = finish(child)
    assert child.returncode == 0
    assert type(messages[-1]).__name__ == "Stopped"
    assert messages[-2].step == messages[-1].step
    assert len(messages) < 100
    again = start(job, LONG)
    assert read_until(again, "Started").resumed_step == messages[-1].step
    again.kill()
    finish_killed(again)


@pytest.mark.parametrize(
    "crash", ["before-manifest", "before-rename:3", "after-rename:1", "before-succeeded"]
)
def test_killed_anywhere_it_goes_on_from_the_newest_whole_checkpoint(make_job, unbroken, crash):
    job = make_job()
    first = start(job, resume_seconds=0.0, crash=crash)
    messages = finish(first)
    assert first.returncode == -signal.SIGKILL
    second = finish(start(job, resume_seconds=0.0))
    assert type(second[-1]).__name__ == "Succeeded"
    saved = [m.step for m in messages if getattr(m, "resume_folder", "")]
    assert second[1].resumed_step >= max(saved, default=0)
    measured = values_of(messages)
    for step, values in values_of(second).items():
        assert measured.setdefault(step, values) == values
    assert measured == values_of(unbroken)
    assert weights_hash(second) == weights_hash(unbroken)
    assert not list((job.folder / "out").glob(".new-*"))


def test_a_process_says_what_a_call_says(unbroken, make_job):
    messages = carry_out(make_job().order())
    assert [type(m) for m in messages] == [type(m) for m in unbroken]
    assert values_of(messages) == values_of(unbroken)


def test_orphaned_it_ends_within_a_step(make_job):
    child = start(make_job(), LONG)
    read_until(child, "Metrics")
    before = time.monotonic()
    child.stdin.close()
    assert child.wait(5) == 3
    assert time.monotonic() - before < 2
    child.stdout.close()


def test_orphaned_while_it_loads(make_job):
    child = start(make_job(), LONG)
    child.stdin.close()
    child.stdout.close()
    assert child.wait(30) == 3


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("invalid_training_file", {"rows": "{"}),
        ("no_trainable_tokens", {"loop": {"max_sequence_length": 8}}),
        ("non_finite_loss", {"loop": {"learning_rate": 10.0, "max_grad_norm": 1e9, **LONG}}),
    ],
)
def test_failures_are_messages(make_job, code, changes):
    if code == "non_finite_loss":
        changes = {**changes, "method": {"type": "lora", "alpha": 65536}}
    child = start(make_job(), **changes)
    failed = finish(child)[-1]
    assert child.returncode == 0
    assert failed.code == code
    assert failed.message.endswith(".")
    assert bool(failed.problems) == (code == "invalid_training_file")


def test_an_order_that_was_dropped_before_it_was_read_costs_the_others_nothing(make_job):
    gone, job = make_job("gone"), make_job()
    child = start(job)
    tell(child, f"train {gone.folder}")
    said = read_until(child, "Broke")
    assert said.reason == "The order's folder is gone"
    read_until(child, "Succeeded")
    child.stdin.close()
    child.stdout.close()
    assert child.wait(30) == 0


def test_a_bug_is_told_from_a_failure(make_job):
    job = make_job()
    job.order()
    (job.folder / "training.jsonl").unlink()
    messages = finish(job.start())
    assert [type(m).__name__ for m in messages] == ["Broke"]
    assert "FileNotFoundError" in messages[0].reason
