"""`python -m worker.train.run`: training runs in a process of their own.

Hears on standard input in which folders orders lie (`job.json`), says on standard output what it
does (`models/spec.py` has the messages), and exits with 0 when the input has ended and every job
has said how it ended. Any other exit is a fault of the machinery.
"""

import hashlib
import json
import logging
import resource
import sys
from functools import lru_cache
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from core.bases import MANIFEST, hash_file, read_manifest
from core.errors import InvalidRequest
from core.faults import crash_point
from core.memory import keep_freed_memory
from models.loop_request import refuse_replaced_weights
from models.nn.artifact import load_training_tensors
from models.nn.backbone import Backbone, pick_dtype
from models.nn.methods.base import Method
from models.spec import Broke, Stopped, Succeeded, TrainOrder, TrainSpec
from worker.train.checkpoint import Checkpoints, Progress, Snapshot, load
from worker.train.course import Work
from worker.train.gang import Gang
from worker.train.loop import Loop
from worker.train.report import Channel, Pipe, write_results
from worker.train.setup import begin, prepare
from worker.train.turns import Interrupted


class BaseReplaced(RuntimeError):
    """A base is not the one that was read from its folder: only a new process can train on it."""


def main() -> None:
    """Train what is ordered, all at once, until the supervisor has nothing more."""
    pipe, gang = Pipe(), Gang()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    while True:
        while (folder := pipe.next_folder(wait=not gang.members)) is not None:
            channel = Channel(folder.name, pipe)
            try:
                content = (folder / "job.json").read_bytes()
            except FileNotFoundError:
                # Who dropped the order, and its folder with it, does not listen.
                channel.say(Broke(reason="The order's folder is gone"))
                continue
            order = msgspec.json.decode(content, type=TrainOrder)
            gang.join(train(order, channel), channel)
        if not gang.members:
            return
        gang.beat()


def train(order: TrainOrder, channel: Channel) -> Work[None]:
    """Carry out an order from its files to a folder to publish, or to a saved pause."""
    spec = TrainSpec.model_validate(order.spec)
    device = prepare_torch(order)
    quantization = spec.loop.quantization
    refuse_replaced_weights(spec.method, quantization=quantization)
    try:
        backbone, base_digest = load_backbone(
            Path(order.base_folder),
            dtype=pick_training_dtype(spec, device),
            device=device,
            quantization=quantization,
        )
        if order.provenance.get("base_digest") not in (None, base_digest):
            raise BaseReplaced
    except BaseReplaced:
        channel.say(Broke(reason="Another base lies where the trainer had read one", alone=True))
        return
    set_precision(spec, device)
    checkpoints = Checkpoints(Path(order.work_folder))
    try:
        setup = prepare(order, spec, backbone=backbone, channel=channel)
    except Interrupted:
        channel.say(Stopped(step=saved_step(order, checkpoints)))
        return
    start = find_start(
        order, setup.method, seed=spec.seed, backbone=backbone, checkpoints=checkpoints
    )
    loop = Loop(
        begin(setup, start, spec=spec, backbone=backbone),
        progress=start.progress,
        channel=channel,
        checkpoints=checkpoints,
        resume_seconds=order.resume_seconds,
    )
    try:
        adapter_folder = yield from loop.train()
    except Interrupted:
        channel.say(Stopped(step=loop.progress.step))
        return
    channel.say(conclude(order, loop, adapter_folder))


@lru_cache(maxsize=1)
def load_backbone(
    folder: Path, *, dtype: torch.dtype, device: str, quantization: str
) -> tuple[Backbone, str | None]:
    """Return the base that the jobs of a process share, and the digest of what lay there then.

    It is admitted by products that do not round. `BaseReplaced` if another one came meanwhile.
    """
    torch.set_float32_matmul_precision("highest")
    digest = _digest_of_base(folder)
    backbone = Backbone.load(folder, dtype=dtype, device=device, quantization=quantization)
    if _digest_of_base(folder) != digest:
        raise BaseReplaced
    return backbone, digest


def _digest_of_base(folder: Path) -> str | None:
    return read_manifest(folder).digest if (folder / MANIFEST).is_file() else None


def conclude(order: TrainOrder, loop: Loop, adapter_folder: Path) -> Succeeded:
    """Write the results of a run that has come to its end; return what is said of it."""
    results, progress = Path(order.work_folder) / "results.csv", loop.progress
    write_results(results, progress.history)
    crash_point("before-succeeded")
    seconds = max(progress.seconds, 1e-9)
    return Succeeded(
        step=progress.step,
        adapter_folder=str(adapter_folder),
        results_file=str(results),
        metrics=progress.latest(),
        trained_tokens=progress.trained_tokens,
        method=loop.run.method.model_dump(mode="json", by_alias=True),
        usage={
            "train_seconds": progress.seconds,
            "tokens_per_second": progress.trained_tokens / seconds,
            "peak_bytes": peak_bytes(loop.run.backbone),
        },
    )


def peak_bytes(backbone: Backbone) -> int:
    """Return the most memory that this process had: the device's, where there is one."""
    if backbone.device.type == "cuda":
        return torch.cuda.max_memory_allocated(backbone.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def prepare_torch(order: TrainOrder) -> str:
    """Set threads, determinism and the allocator; return the device to compute on."""
    if order.threads:
        torch.set_num_threads(order.threads)
    on_gpu = order.device == "cuda" or (order.device == "auto" and torch.cuda.is_available())
    torch.use_deterministic_algorithms(mode=True, warn_only=on_gpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()
    return "cuda" if on_gpu else "cpu"


def pick_training_dtype(spec: TrainSpec, device: str) -> torch.dtype:
    """Return what the base computes in; the adapter's masters are float32 always."""
    if spec.loop.dtype == "auto":
        return pick_dtype(device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec.loop.dtype]


def set_precision(spec: TrainSpec, device: str) -> None:
    """Let products of float32 on a CPU round more, but not for a job that asks for float32.

    The jobs of a gang ask for the same dtype.
    """
    rounds = device == "cpu" and spec.loop.dtype == "auto"
    torch.set_float32_matmul_precision("high" if rounds else "highest")


def find_start(
    order: TrainOrder, method: Method, *, seed: int, backbone: Backbone, checkpoints: Checkpoints
) -> Snapshot:
    """Return where to go on: at a checkpoint, at a parent adapter, or at fresh tensors."""
    digest = digest_of(order)
    folder = find_saved(order, checkpoints)
    if folder is not None:
        return load(folder, run_digest=digest)
    if order.parent_folder is not None and method.trained(backbone.shape):
        tensors = read_parent(Path(order.parent_folder), method, backbone)
    else:
        tensors = method.init(backbone.base, torch.Generator().manual_seed(seed))
    return Snapshot(tensors, {}, Progress(run_digest=digest))


def find_saved(order: TrainOrder, checkpoints: Checkpoints) -> Path | None:
    """Return the checkpoint to go on from, if there is one."""
    return checkpoints.newest() or (Path(order.resume_folder) if order.resume_folder else None)


def saved_step(order: TrainOrder, checkpoints: Checkpoints) -> int:
    """Return the step that the run would go on from."""
    folder = find_saved(order, checkpoints)
    return 0 if folder is None else load(folder, run_digest=digest_of(order)).progress.step


def read_parent(folder: Path, method: Method, backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors of the adapter to go on from, which must be alike."""
    parent = load_training_tensors(folder, shape=backbone.shape)
    expected = method.tensors(backbone.shape)
    found = {name: tuple(tensor.shape) for name, tensor in parent.tensors.items()}
    if parent.method.kind != method.kind or found != expected:
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


if __name__ == "__main__":
    main()
