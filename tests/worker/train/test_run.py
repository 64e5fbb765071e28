import csv
import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from models.nn.artifact import load_artifact
from models.spec import CheckpointSaved
from tests.worker.train.conftest import ROWS, Recording, carry_out, values_of, weights_hash
from tests.worker.train.gangs import run_together
from worker.train import run as module
from worker.train.gang import explain
from worker.train.optim import Optimizer
from worker.train.plan import epoch_order


def names(messages):
    return [type(message).__name__ for message in messages]


def test_a_whole_run(make_job, backbone):
    order = make_job().order(validation=ROWS[:5], provenance={"job_id": "ftjob-1"})
    messages = carry_out(order)
    steps = ["Metrics"] * 5 + ["Metrics", "CheckpointSaved"]
    assert names(messages) == ["Validated", "Started", *steps, *steps, "Succeeded"]
    validated, started, *_, saved, ended = messages
    assert validated.report["rows_kept"] == 20
    assert validated.report["validation"]["rows_kept"] == 5
    assert (started.total_steps, started.resumed_step) == (10, 0)
    tokens = validated.report["tokens"]
    assert ended.trained_tokens == 2 * tokens
    measured = values_of(messages)
    assert sorted(measured) == list(range(1, 11))
    assert all(math.isfinite(value) for values in measured.values() for value in values.values())
    assert measured[10]["train_loss"] < measured[1]["train_loss"] - 0.1
    assert measured[5]["full_valid_loss"] > measured[10]["full_valid_loss"]
    assert ended.metrics == saved.metrics
    assert ended.metrics["learning_rate"] == measured[10]["learning_rate"] < 0.01
    assert ended.adapter_folder == saved.adapter_folder
    shown = [message for message in messages if type(message).__name__ == "CheckpointSaved"]
    assert [bool(message.resume_folder) for message in shown] == [True, False]

    artifact = load_artifact(Path(ended.adapter_folder), shape=backbone.shape)
    assert artifact.provenance["job_id"] == "ftjob-1"
    assert artifact.provenance["seed"] == 3
    assert artifact.provenance["data"] == validated.report
    assert artifact.provenance["metrics"] == ended.metrics
    assert {path.suffix for path in Path(order.work_folder).rglob("*") if path.is_file()} == {
        ".csv",
        ".json",
        ".safetensors",
    }
    with Path(ended.results_file).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert float(rows[9]["valid_loss"]) == measured[10]["full_valid_loss"]
    assert rows[8]["valid_loss"] == ""


@pytest.mark.parametrize("asks_after", [2, 5, 7, 9])
def test_a_paused_and_resumed_run_is_the_unbroken_one(make_job, asks_after):
    loop = {"micro_batch_tokens": 200}
    unbroken = carry_out(make_job("unbroken").order(validation=ROWS[:9], loop=loop))
    job = make_job("paused")
    order = job.order(validation=ROWS[:9], loop=loop)
    first = carry_out(order, asks_after=asks_after)
    assert names(first)[-2:] == ["CheckpointSaved", "Stopped"]
    assert first[-2].kind == "resume"
    assert first[-2].adapter_folder == ""
    folder = first[-2].resume_folder
    second = carry_out(
        make_job("resumed").order(validation=ROWS[:9], loop=loop, resume_folder=folder)
    )
    assert second[1].resumed_step == first[-1].step
    measured = values_of(first)
    for step, values in values_of(second).items():
        assert measured.setdefault(step, {}).keys().isdisjoint(values)
        measured[step] |= values
    assert measured == values_of(unbroken)
    assert weights_hash(second) == weights_hash(unbroken)
    results = [Path(run[-1].results_file).read_bytes() for run in (second, unbroken)]
    assert results[0] == results[1]
    assert second[-1].trained_tokens == unbroken[-1].trained_tokens


def test_seeds_differ_and_repeat(make_job):
    hashes = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        job = make_job(name)
        order = job.order()
        order.spec["seed"] = seed
        hashes.append(weights_hash(carry_out(order)))
    assert hashes[0] == hashes[1] != hashes[2]


class Storing(Recording):
    """A channel to whom stores what it hears of, or cannot: the store is away."""

    def __init__(self, *, away):
        super().__init__()
        self._away = away

    def say(self, message):
        super().say(message)
        if not self._away and isinstance(message, CheckpointSaved) and message.resume_folder:
            shutil.rmtree(message.resume_folder)


@pytest.mark.parametrize(("away", "timed"), [(False, 5), (True, 1)])
def test_resume_checkpoints_come_by_the_clock_once_the_last_is_stored(make_job, away, timed):
    order = make_job().order(resume_seconds=0.0, loop={"n_epochs": 1})
    (messages,) = run_together([order], [Storing(away=away)])
    kinds = [message.kind for message in messages if isinstance(message, CheckpointSaved)]
    assert kinds == ["resume"] * timed + ["epoch"]


@pytest.mark.parametrize("away", [False, True])
def test_an_epoch_saves_what_the_run_goes_on_from_once_the_last_is_stored(make_job, away):
    order = make_job().order(loop={"n_epochs": 4})
    (messages,) = run_together([order], [Storing(away=away)])
    shown = [message for message in messages if isinstance(message, CheckpointSaved)]
    assert [bool(one.resume_folder) for one in shown] == [True, not away, not away, False]
    assert [one.over for one in shown] == [False, False, False, True]
    assert all(Path(one.adapter_folder).is_dir() for one in shown)
    assert len([*Path(order.work_folder).glob("resume-*")]) == away


class Late(Recording):
    """A channel to whom stores an epoch's adapter only after looks at what is asked of the job."""

    def __init__(self, *, looks, folder):
        super().__init__()
        self.most = self._looked = 0
        self._looks = looks
        self._folder = folder

    def check(self):
        waiting = sorted(self._folder.glob("adapter-*"))
        self.most = max(self.most, len(waiting))
        self._looked += 1
        if self._looked % self._looks == 0 and waiting:
            shutil.rmtree(waiting[0])


@pytest.mark.parametrize(("room", "fewest", "most"), [(2**30, 5, 10), (1, 1, 1)])
def test_adapters_that_fill_their_room_on_the_disk_have_the_run_wait(
    make_job, monkeypatch, room, fewest, most
):
    monkeypatch.setattr("worker.train.checkpoint.MOST_ADAPTER_BYTES", room)
    monkeypatch.setattr("worker.train.loop.LOOK_SECONDS", 0)
    order = make_job().order(rows=ROWS[:4], loop={"n_epochs": 10})
    late = Late(looks=25, folder=Path(order.work_folder))
    (messages,) = run_together([order], [late])
    assert names(messages)[-1] == "Succeeded"
    assert len([one for one in messages if isinstance(one, CheckpointSaved)]) == 10
    assert fewest <= late.most <= most


def test_a_run_that_waits_for_the_store_hears_that_it_is_to_stop(make_job, monkeypatch):
    monkeypatch.setattr("worker.train.checkpoint.MOST_ADAPTER_BYTES", 1)
    order = make_job().order(rows=ROWS[:4], loop={"n_epochs": 10})
    messages = carry_out(order, asks_after=5)
    assert names(messages)[-1] == "Stopped"
    assert len([*Path(order.work_folder).glob("adapter-*")]) == 1


def test_a_full_disk_costs_a_resume_checkpoint_and_not_the_job(make_job, monkeypatch):
    save = module.Checkpoints.save

    def fail(self, snapshot):
        if snapshot.progress.step < 5:
            raise OSError(28, "No space left on device")
        return save(self, snapshot)

    monkeypatch.setattr(module.Checkpoints, "save", fail)
    messages = carry_out(make_job().order(resume_seconds=0.0, loop={"n_epochs": 1}))
    assert names(messages)[-1] == "Succeeded"


def test_a_run_started_again_goes_on_from_its_own_newest_checkpoint(make_job):
    order = make_job().order()
    carry_out(order, asks_after=5)
    assert carry_out(order)[1].resumed_step == 3


@pytest.mark.parametrize("saved", [0, 1])
def test_a_pause_while_the_method_looks_at_the_data_is_a_pause(make_job, saved):
    order = make_job().order(method={"type": "hard_prompt", "prompt_length": 3})
    if saved:
        carry_out(order, asks_after=3)
    messages = carry_out(order, asks_after=1)
    assert names(messages) == ["Validated", "Stopped"]
    assert messages[-1].step == saved
    assert names(carry_out(order))[-1] == "Succeeded"


def test_a_demonstration_is_what_was_written_and_a_label_has_no_space_around_it(make_job, backbone):
    rows = [{"prompt": f"{n}:", "completion": (" odd", " even")[n % 2]} for n in range(8)]
    shown, labelled = (
        carry_out(make_job(block["type"]).order(rows=rows, validation=rows, method=block))
        for block in ({"type": "in_context", "k": 2}, {"type": "head"})
    )
    method = load_artifact(Path(shown[-1].adapter_folder), shape=backbone.shape).method
    assert {row.answer for row in method.chosen} == {" odd", " even"}
    classifier = load_artifact(Path(labelled[-1].adapter_folder), shape=backbone.shape).method
    assert classifier.class_labels == ("even", "odd")


def test_demonstrations_do_not_push_rows_out_of_a_measure(make_job):
    rows = [
        {"prompt": f"{'so ' * (20 + 3 * n)}:", "completion": (" a", " b")[n % 2]} for n in range(4)
    ]
    block = {"type": "in_context", "k": 1}
    loop = {"max_sequence_length": 100}
    order = make_job().order(rows=rows, validation=rows[:1], method=block, loop=loop)
    messages = carry_out(order)
    assert names(messages)[-1] == "Succeeded"
    assert messages[-1].metrics["valid_loss"] > 0


def test_a_job_may_go_on_from_a_parent(make_job):
    parent = carry_out(make_job("parent").order(validation=ROWS))
    order = make_job("child").order(
        validation=ROWS, parent_folder=parent[-1].adapter_folder, loop={"learning_rate": 1e-30}
    )
    child = carry_out(order)
    assert child[-1].metrics["full_valid_loss"] == parent[-1].metrics["full_valid_loss"]
    assert weights_hash(child) == weights_hash(parent)


@pytest.mark.parametrize("method", [{"type": "lora", "rank": 8}, {"type": "ia3"}])
def test_a_parent_must_be_alike(make_job, method):
    parent = carry_out(make_job("parent").order(loop={"n_epochs": 1}))
    order = make_job("child").order(parent_folder=parent[-1].adapter_folder, method=method)
    assert carry_out(order)[-1].code == "incompatible_parent"


def test_ia3_trains_by_the_same_loop(make_job):
    order = make_job().order(
        method={"type": "ia3"}, validation=ROWS, loop={"scheduler": "constant"}
    )
    measured = values_of(carry_out(order))
    assert measured[10]["full_valid_loss"] < measured[5]["full_valid_loss"]


def test_a_loss_that_is_no_number_ends_the_job(make_job):
    order = make_job().order(loop={"learning_rate": 10.0, "n_epochs": 50, "max_grad_norm": 1e9})
    order.spec["method"] = {"type": "lora", "rank": 4, "alpha": 65536}
    failed = carry_out(order)[-1]
    assert (failed.code, failed.param) == ("non_finite_loss", None)  # the data may be at fault
    assert "Lower the learning rate" in failed.message


def test_a_last_step_that_leaves_no_numbers_ends_the_job_likewise(make_job, monkeypatch):
    step = Optimizer.step
    monkeypatch.setattr(Optimizer, "step", lambda self, rate: step(self, 1e39))
    loop = {"n_epochs": 1, "batch_size": len(ROWS)}
    messages = carry_out(make_job().order(method={"type": "ia3"}, loop=loop))
    assert names(messages) == ["Validated", "Started", "Metrics", "Failed"]
    assert messages[-1].code == "non_finite_loss"


def test_bad_rows_end_the_job_with_their_lines(make_job):
    failed = carry_out(make_job().order(rows='{"text": "a"}\n{"txt": "b"}'))[-1]
    assert failed.problems[0]["line"] == 2
    assert carry_out(make_job().order(validation="{}"))[-1].param == "validation_file"


def test_a_damaged_checkpoint_is_refused(make_job, tmp_path):
    first = carry_out(make_job("a").order(), asks_after=4)
    state = Path(first[-2].resume_folder) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "step": 1}))
    messages = carry_out(make_job("b").order(resume_folder=first[-2].resume_folder))
    assert messages[-1].code == "corrupt_checkpoint"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
    ],
)
def test_out_of_memory_is_told_apart(error):
    assert explain(error).code == "out_of_memory"
    assert type(explain(RuntimeError("shape mismatch"))).__name__ == "Broke"


def test_the_loss_curve_is_that_of_peft(make_job, base_folder, renderer):
    """20 steps in float32 against PEFT and a plain loop over padded batches."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    loop = {
        "n_epochs": 4,
        "learning_rate": 1e-3,
        "scheduler": "constant",
        "warmup_ratio": 0,
        "max_grad_norm": 0.5,
    }
    order = make_job().order(loop=loop, method={"type": "lora", "rank": 4})
    measured = values_of(carry_out(order))

    network = AutoModelForCausalLM.from_pretrained(base_folder)
    start = carry_out(
        make_job("start").order(
            loop={**loop, "learning_rate": 1e-30}, method={"type": "lora", "rank": 4}
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name
        folder = start[-1].adapter_folder
        network = peft.PeftModel.from_pretrained(network, folder, is_trainable=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    examples = [renderer.example(row["messages"]) for row in ROWS]
    for step in range(20):
        order_of_epoch = epoch_order(20, seed=3, epoch=step // 5)
        rows = [examples[row] for row in order_of_epoch[step % 5 * 4 :][:4]]
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
        labels = torch.tensor(
            [
                [i if use else -100 for i, use in zip(*row, strict=True)]
                + [-100] * (width - len(row.ids))
                for row in rows
            ]
        )
        mask = (torch.arange(width) < torch.tensor([[len(row.ids)] for row in rows])).long()
        loss = network(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert measured[step + 1]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert measured[step + 1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


@pytest.mark.parametrize(("dtype", "precision"), [("auto", "high"), ("float32", "highest")])
def test_products_round_only_for_who_leaves_the_dtype_to_us(make_job, dtype, precision):
    carry_out(make_job().order(loop={"dtype": dtype, "max_tokens": 40}))
    assert torch.get_float32_matmul_precision() == precision


def test_a_base_is_admitted_by_products_that_do_not_round(make_job, monkeypatch):
    """Also by a process that has trained on another one whose products rounded."""
    found = []

    def spy(*given, **how):
        found.append(torch.get_float32_matmul_precision())
        return load(*given, **how)

    load = module.Backbone.load
    monkeypatch.setattr(module.Backbone, "load", spy)
    torch.set_float32_matmul_precision("high")
    module.load_backbone.cache_clear()
    carry_out(make_job().order(loop={"dtype": "auto", "n_epochs": 1}))
    assert found == ["highest"]
    assert torch.get_float32_matmul_precision() == "high"
