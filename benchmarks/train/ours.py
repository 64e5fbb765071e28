"""Our side: the trainer as a job runs it, in a process that keeps what torch has warmed up."""

import resource
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from benchmarks.sides import JSON, serve
from benchmarks.train.forms import to_peer
from benchmarks.train.protocol import CONFIG_FILE, START_FILE
from models.nn.backbone import Backbone
from models.spec import Broke, Failed, Metrics, TrainerMessage, TrainOrder, TrainSpec
from worker.train.gang import Gang
from worker.train.run import pick_training_dtype, prepare_torch, train


class Recorder:
    """Stands where the channel to a supervisor does, and writes down when each step ended."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, dict[str, float], int]] = []

    def say(self, message: TrainerMessage) -> None:
        """Keep what a step measured."""
        if isinstance(message, Failed):
            raise RuntimeError(message.message)
        if isinstance(message, Broke):
            raise RuntimeError(message.reason)
        if isinstance(message, Metrics) and "train_loss" in message.values:
            self.steps.append((time.perf_counter(), message.values, message.trained_tokens))

    def check(self) -> None:
        """Nobody asks for a pause."""

    def stay_alive(self) -> None:
        """Nobody waits for a sign."""

    def close(self) -> None:
        """Nobody needs to know of the end."""


def answer(question: JSON) -> JSON:
    """Train what the order says, or export how it would begin."""
    order = msgspec.convert(question["order"], TrainOrder)
    work = tempfile.mkdtemp(dir=order.work_folder)
    order = msgspec.structs.replace(order, work_folder=work)
    try:
        if "export" in question:
            return export(order, Path(question["export"]), form=question["form"])
        return run(order)
    finally:
        shutil.rmtree(work)


def run(order: TrainOrder) -> JSON:
    """Train to the end; return the curves, the times and the most memory so far."""
    recorder = Recorder()
    began = time.perf_counter()
    train_alone(order, recorder)
    ends = [end for end, _, _ in recorder.steps]
    seen = [0, *(tokens for _, _, tokens in recorder.steps)]
    return {
        "losses": [values["train_loss"] for _, values, _ in recorder.steps],
        "norms": [values["grad_norm"] for _, values, _ in recorder.steps],
        "tokens": [after - before for before, after in pairwise(seen)],
        "ends": [end - began for end in ends],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def train_alone(order: TrainOrder, recorder: Recorder) -> None:
    """Carry out one order from start to end, as a trainer does with its only job."""
    channel: Any = recorder
    gang = Gang()
    gang.join(train(order, channel), channel)
    while gang.members:
        gang.beat()


def export(order: TrainOrder, folder: Path, *, form: str) -> JSON:
    """Write the tensors that training would begin with, in the form of a peer.

    Returns by what we scale their learning rate; `ValueError` if they differ in that, which no
    peer does.
    """
    spec = TrainSpec.model_validate(order.spec)
    device = prepare_torch(order)
    backbone = Backbone.load(
        Path(order.base_folder), dtype=pick_training_dtype(spec, device), device=device
    )
    tensors = spec.method.init(backbone.base, torch.Generator().manual_seed(spec.seed))
    config, theirs = to_peer(spec.method, tensors, base=backbone.base, form=form)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, folder / START_FILE)
    (folder / CONFIG_FILE).write_bytes(msgspec.json.encode(config))
    (scale,) = {spec.method.learning_rate_scale(name) for name in tensors}
    return {"tensors": len(theirs), "learning_rate_scale": scale}


def make_order(
    *,
    base_folder: Path,
    training_file: str,
    method: dict[str, Any],
    loop: dict[str, Any],
    seed: int,
    folder: Path,
) -> JSON:
    """Return the order of one run, as a question holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    order = TrainOrder(
        job_id="benchmark",
        spec={"base": base_folder.name, "method": method, "loop": loop, "seed": seed},
        base_folder=str(base_folder),
        training_file=training_file,
        work_folder=str(folder),
    )
    built: JSON = msgspec.to_builtins(order)
    return built


if __name__ == "__main__":
    serve(answer)
