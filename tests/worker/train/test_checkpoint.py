import json
import os
import shutil

import pytest
import torch

from core.errors import Corrupt
from worker.train import checkpoint
from worker.train.checkpoint import Checkpoints, Progress, Snapshot, load, new_folder
from worker.train.report import StepValues


def snapshot(step=0):
    history = [StepValues(1, {"train_loss": 0.1 + 0.2}), StepValues(2, {"valid_loss": 1e-30})]
    return Snapshot(
        {"a": torch.tensor([0.1, 2.0])},
        {"exp_avg.a": torch.tensor([3.0, 4.0]), "step.a": torch.tensor(5.0)},
        Progress(run_digest="r", step=step, measured_step=1, trained_tokens=7, history=history),
    )


def test_what_is_saved_is_what_is_loaded(tmp_path):
    saved = snapshot(3)
    folder = Checkpoints(tmp_path).save(saved)
    found = load(folder, run_digest="r")
    assert found.progress == saved.progress
    assert found.progress.latest() == {"train_loss": 0.1 + 0.2, "valid_loss": 1e-30}
    for ours, theirs in ((found.tensors, saved.tensors), (found.moments, saved.moments)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("name", ["tensors.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_changed_byte_is_refused(tmp_path, name, damage):
    path = Checkpoints(tmp_path).save(snapshot()) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(Corrupt) as caught:
        load(path.parent, run_digest="r")
    assert caught.value.code == "corrupt_checkpoint"


@pytest.mark.parametrize("manifest", [None, "", "[]", "{}"])
def test_a_bad_manifest_is_refused(tmp_path, manifest):
    path = Checkpoints(tmp_path).save(snapshot()) / checkpoint.MANIFEST
    if manifest is None:
        path.unlink()
    else:
        path.write_text(manifest)
    with pytest.raises(Corrupt):
        load(path.parent, run_digest="r")


def test_a_file_too_many_is_refused(tmp_path):
    folder = Checkpoints(tmp_path).save(snapshot())
    hashes = json.loads((folder / checkpoint.MANIFEST).read_text())
    (folder / "weights.bin").write_bytes(b"")
    (folder / checkpoint.MANIFEST).write_text(json.dumps(hashes | {"weights.bin": ""}))
    with pytest.raises(Corrupt):
        load(folder, run_digest="r")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    with pytest.raises(Corrupt, match="another"):
        load(Checkpoints(tmp_path).save(snapshot()), run_digest="other")


def test_the_newest_that_verifies_is_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    folders = [checkpoints.save(snapshot(step)) for step in (9, 10, 10, 100)]
    assert len(set(folders)) == 4
    assert checkpoints.newest() == folders[3]
    (folders[3] / "state.json").unlink()
    assert checkpoints.newest() == folders[2]


def test_a_checkpoint_waits_until_it_is_stored_however_long_that_takes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert not checkpoints.any_waits
    folders = [checkpoints.save(snapshot(step)) for step in range(5)]
    for folder in folders:
        os.utime(folder, (0, 0))  # told of half a century ago
    folders.append(checkpoints.save(snapshot(5)))
    for folder in folders:
        assert checkpoints.any_waits
        load(folder, run_digest="r")
        shutil.rmtree(folder)  # as the supervisor does then
    assert not checkpoints.any_waits


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("h")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "a") as scratch:
        fail(scratch)
    assert not list(tmp_path.iterdir())


def test_what_a_crash_left_is_removed(tmp_path):
    (tmp_path / ".new-1").mkdir()
    Checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())
