"""`python -m worker.train.run JOB_FOLDER`: one training run in a process of its own.

Reads `job.json`, says what it does on standard output (`models/spec.py` has the messages), and
exits with 0 once it has said how it ended. Any other exit is a fault of the machinery.
"""

import ctypes
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from core.bases import hash_file
from core.errors import GraftworkError, InvalidData, InvalidRequest
from core.faults import crash_point
from models.nn.artifact import load_artifact
from models.nn.backbone import Backbone, pick_dtype
from models.nn.chat import Renderer
from models.spec import Failed, Stopped, Succeeded, TrainOrder, TrainSpec, Validated
from worker.train.checkpoint import Checkpoints, Progress, Snapshot, load
from worker.train.data import Examples, read_examples
from worker.train.loop import Loop, Run
from worker.train.report import Channel, Interrupted, write_results

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_OUT_OF_MEMORY = Failed(
    code="out_of_memory",
    message="The machine ran out of memory. Lower micro_batch_tokens or max_sequence_length, "
    "or choose a method with fewer parameters.",
    param="training",
)


def main() -> None:
    """Train what the job folder orders and say how it ended."""
    channel = Channel()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    order = msgspec.json.decode((Path(sys.argv[1]) / "job.json").read_bytes(), type=TrainOrder)
    try:
        train(order, channel)
    except GraftworkError as error:
        problems: Any = error.problems if isinstance(error, InvalidData) else []
        channel.say(
            Failed(code=error.code, message=error.message, param=error.param, problems=problems)
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        channel.say(_OUT_OF_MEMORY)
    channel.close()


def train(order: TrainOrder, channel: Channel) -> None:
    """Carry out an order from its files to a folder to publish, or to a saved pause."""
    spec = TrainSpec.model_validate(order.spec)
    device = prepare_torch(order)
    base_folder = Path(order.base_folder)
    backbone = Backbone.load(base_folder, dtype=pick_training_dtype(spec, device), device=device)
    training, validation = read_data(order, spec, backbone, channel)
    report = report_on(training, validation)
    channel.say(Validated(report=report))

    checkpoints = Checkpoints(Path(order.work_folder))
    start = find_start(order, spec, backbone, checkpoints)
    run = Run(
        backbone=backbone,
        method=spec.method,
        tensors={
            name: place(start.tensors[name], device)  # in one order always: sums depend on it
            for name in spec.method.tensors(backbone.shape)
        },
        loop=spec.loop,
        seed=spec.seed,
        training=training,
        validation=validation,
        provenance={**order.provenance, "seed": spec.seed, "data": report},
    )
    loop = Loop(
        run,
        channel=channel,
        checkpoints=checkpoints,
        start=start,
        resume_seconds=order.resume_seconds,
    )
    try:
        adapter_folder = loop.run()
    except Interrupted:
        channel.say(Stopped(step=loop.progress.step))
        return
    channel.say(conclude(order, loop.progress, adapter_folder))


def conclude(order: TrainOrder, progress: Progress, adapter_folder: Path) -> Succeeded:
    """Write the results of a run that has come to its end; return what is said of it."""
    results = Path(order.work_folder) / "results.csv"
    write_results(results, progress.history)
    crash_point("before-succeeded")
    return Succeeded(
        step=progress.step,
        adapter_folder=str(adapter_folder),
        results_file=str(results),
        metrics=progress.latest(),
        trained_tokens=progress.trained_tokens,
    )


def prepare_torch(order: TrainOrder) -> str:
    """Set threads, determinism and the allocator; return the device to compute on."""
    if order.threads:
        torch.set_num_threads(order.threads)
    on_gpu = order.device == "cuda" or (order.device == "auto" and torch.cuda.is_available())
    torch.use_deterministic_algorithms(mode=True, warn_only=on_gpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if sys.platform == "linux":
        keep_freed_memory()
    return "cuda" if on_gpu else "cpu"


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed memory: fresh pages for each large tensor cost a tenth of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0)):
            mallopt(parameter, value)


def pick_training_dtype(spec: TrainSpec, device: str) -> torch.dtype:
    """Return what the base computes in; the adapter's masters are float32 always."""
    if spec.loop.dtype == "auto":
        return pick_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec.loop.dtype]


def read_data(
    order: TrainOrder, spec: TrainSpec, backbone: Backbone, channel: Channel
) -> tuple[Examples, Examples | None]:
    """Tokenise the training file and, if there is one, the validation file."""
    renderer = Renderer.load(Path(order.base_folder))
    max_length = min(spec.loop.max_sequence_length, backbone.shape.context)

    def read(path: str, param: str) -> Examples:
        return read_examples(
            Path(path),
            folder=Path(order.work_folder),
            renderer=renderer,
            max_length=max_length,
            param=param,
            stay_alive=channel.stay_alive,
        )

    training = read(order.training_file, "training_file")
    if order.validation_file is None:
        return training, None
    return training, read(order.validation_file, "validation_file")


def report_on(training: Examples, validation: Examples | None) -> dict[str, Any]:
    """Return what became of the rows, those of the validation file below a key of its own."""
    report: dict[str, Any] = msgspec.to_builtins(training.counts)
    if validation is not None:
        report["validation"] = msgspec.to_builtins(validation.counts)
    return report


def find_start(
    order: TrainOrder, spec: TrainSpec, backbone: Backbone, checkpoints: Checkpoints
) -> Snapshot:
    """Return where to go on: at a checkpoint, at a parent adapter, or at fresh tensors."""
    digest = digest_of(order)
    folder = checkpoints.newest() or (Path(order.resume_folder) if order.resume_folder else None)
    if folder is not None:
        return load(folder, run_digest=digest)
    if order.parent_folder is not None:
        tensors = read_parent(Path(order.parent_folder), spec, backbone)
    else:
        generator = torch.Generator().manual_seed(spec.seed)
        tensors = spec.method.init(backbone.base, generator)
    return Snapshot(tensors, {}, Progress(run_digest=digest))


def read_parent(folder: Path, spec: TrainSpec, backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors of the adapter to go on from, which must be alike."""
    parent = load_artifact(folder, shape=backbone.shape)
    expected = spec.method.tensors(backbone.shape)
    found = {name: tuple(tensor.shape) for name, tensor in parent.tensors.items()}
    if parent.method.kind != spec.method.kind or found != expected:
        raise InvalidRequest(
            f"The adapter to continue from is {parent.method.model_dump_json()}; a job that "
            "continues it must have the same method with tensors of the same dimensions.",
            code="incompatible_parent",
            param="model",
        )
    return parent.tensors


def digest_of(order: TrainOrder) -> str:
    """Return a hash of all that a run's numbers depend on, the machine excepted."""
    files = (order.training_file, order.validation_file)
    content = {
        "job": order.job_id,  # or equal jobs would share, and delete, one stored checkpoint
        "spec": order.spec,
        "base": order.provenance.get("base_digest"),
        "parent": order.provenance.get("parent_digest"),
        "files": [hash_file(Path(path)) if path else None for path in files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def place(tensor: Tensor, device: str) -> Tensor:
    """Return a float32 master on the device that gathers gradients."""
    return tensor.to(device, torch.float32, copy=True).requires_grad_()


def is_out_of_memory(error: Exception) -> bool:
    """Tell running out of memory, for which torch has no one exception on the CPU, from a bug."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


if __name__ == "__main__":
    main()
