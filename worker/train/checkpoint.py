"""Checkpoints that are whole or not there: written aside, hashed, forced to disk, renamed.

A resume checkpoint is a flat folder of safetensors and JSON whose manifest holds the hash of
every file. Nothing here is or reads a pickle.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from core.bases import hash_file
from core.errors import Corrupt
from core.faults import crash_point
from worker.train.report import StepValues

MANIFEST = "manifest.json"
_TENSORS = "tensors.safetensors"
_MOMENTS = "optimizer.safetensors"
_STATE = "state.json"
MOST_ADAPTER_BYTES = 2**30
"""So many may lie on the trainer's disk before a run waits for the store."""


class Progress(msgspec.Struct, kw_only=True):
    """How far a run is.

    There is no generator state in it: the order of rows and all dropout are functions of the
    seed and of these numbers.
    """

    run_digest: str
    step: int = 0
    measured_step: int = 0
    """The last step at which the run was measured and shown."""
    trained_tokens: int = 0
    seconds: float = 0.0
    """By the clock on the wall, while a step was under way: what neighbours in the gang computed
    meanwhile is in it, the job's own evaluations and checkpoints are not."""
    history: list[StepValues] = []

    def latest(self) -> dict[str, float]:
        """Return the last value of every metric."""
        values: dict[str, float] = {}
        for entry in self.history:
            values.update(entry.values)
        return values


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on as if it had never stopped."""

    tensors: dict[str, Tensor]
    moments: dict[str, Tensor]
    progress: Progress


class Checkpoints:
    """The checkpoints in one working folder: each waits there until the supervisor has stored it.

    The supervisor removes it then; nobody else can know when it may vanish.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder; what a crash left half written is removed."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for partial in folder.glob(".new-*"):
            shutil.rmtree(partial)

    def save(self, snapshot: Snapshot) -> Path:
        """Write a resume checkpoint; return its folder, which has a name of its own each time."""
        number = len(list(self.folder.glob("resume-*")))
        while (target := self.folder / f"resume-{snapshot.progress.step:08}-{number}").exists():
            number += 1
        with new_folder(target) as scratch:
            tensors = {name: tensor.detach().cpu() for name, tensor in snapshot.tensors.items()}
            moments = {name: tensor.cpu() for name, tensor in snapshot.moments.items()}
            (scratch / _TENSORS).write_bytes(save_tensors(tensors))
            (scratch / _MOMENTS).write_bytes(save_tensors(moments))
            (scratch / _STATE).write_bytes(msgspec.json.encode(snapshot.progress))
            crash_point("before-manifest")
            hashes = {path.name: hash_file(path) for path in sorted(scratch.iterdir())}
            (scratch / MANIFEST).write_text(json.dumps(hashes, indent=2))
        return target

    @property
    def any_waits(self) -> bool:
        """Whether the supervisor has yet to store one that it was told of."""
        return any(self.folder.glob("resume-*"))

    def adapter_folder(self, step: int) -> Path:
        """Return where the adapter of a step lies until it is stored."""
        return self.folder / f"adapter-{step:08}"

    @property
    def many_adapters_wait(self) -> bool:
        """Whether those that the supervisor has yet to store fill `MOST_ADAPTER_BYTES`."""
        size = 0
        for path in self.folder.glob("adapter-*/*"):
            with suppress(FileNotFoundError):  # it has just been stored
                size += path.stat().st_size
        return size >= MOST_ADAPTER_BYTES

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint: that of the highest step which verifies."""
        for folder in sorted(self.folder.glob("resume-*"), key=_step_and_number, reverse=True):
            try:
                verify(folder)
            except Corrupt:
                continue
            return folder
        return None


def load(folder: Path, *, run_digest: str) -> Snapshot:
    """Read a resume checkpoint; `Corrupt` if a byte differs or it belongs to another run."""
    verify(folder)
    progress = msgspec.json.decode((folder / _STATE).read_bytes(), type=Progress)
    if progress.run_digest != run_digest:
        raise Corrupt(
            "The checkpoint is of a run with another specification, base or data set.",
            code="corrupt_checkpoint",
        )
    return Snapshot(
        load_tensors((folder / _TENSORS).read_bytes()),
        load_tensors((folder / _MOMENTS).read_bytes()),
        progress,
    )


def verify(folder: Path) -> None:
    """Raise `Corrupt` unless the folder holds exactly the files of its manifest, unchanged."""
    try:
        hashes = json.loads((folder / MANIFEST).read_bytes())
        found = {path.name: hash_file(path) for path in folder.iterdir() if path.name != MANIFEST}
    except (OSError, ValueError) as error:
        raise Corrupt(
            f"The checkpoint {folder.name} cannot be read.", code="corrupt_checkpoint"
        ) from error
    if hashes != found or hashes.keys() != {_TENSORS, _MOMENTS, _STATE}:
        raise Corrupt(
            f"The checkpoint {folder.name} does not match its manifest.", code="corrupt_checkpoint"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write in; it becomes `target` once all is on disk, or leaves no trace."""
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        yield scratch
        for path in (*scratch.iterdir(), scratch):
            _sync(path)
        crash_point("before-rename")
        scratch.replace(target)
        _sync(target.parent)
        crash_point("after-rename")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_and_number(folder: Path) -> tuple[int, int]:
    _, step, number = folder.name.split("-")
    return int(step), int(number)
