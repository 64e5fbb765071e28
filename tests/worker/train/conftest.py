"""Training orders over a tiny base, carried out here or in a process of their own."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from models.spec import FINAL, Said, TrainerMessage, TrainOrder
from tests.tiny import make_tiny_base
from worker.train import gang as module
from worker.train.gang import Gang
from worker.train.run import train
from worker.train.turns import Interrupted

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} and {'one ' * (n % 5)}?"},
            {"role": "assistant", "content": f"It is {n}."},
        ]
    }
    for n in range(20)
]
LOOP = {
    "n_epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
    "micro_batch_tokens": 128,
    "dtype": "float32",
}
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 288,  # more than the tokenizer's, so that the head too is one for C++
}
METHOD = {"type": "lora", "rank": 4, "dropout": 0.1}


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def backbone(base_folder: Path) -> Backbone:
    return Backbone.load(base_folder, dtype=torch.float32)


@pytest.fixture(scope="session")
def renderer(base_folder: Path) -> Renderer:
    return Renderer.load(base_folder)


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.set_float32_matmul_precision("highest")


class Recording:
    """A channel into a list; `asks_after` messages it asks for a pause."""

    def __init__(self, *, asks_after: int | None = None) -> None:
        self.messages: list[Any] = []
        self._asks_after = asks_after

    def say(self, message: TrainerMessage) -> None:
        self.messages.append(message)

    def stay_alive(self) -> None:
        pass

    def check(self) -> None:
        if self._asks_after is not None and len(self.messages) >= self._asks_after:
            raise Interrupted

    def close(self) -> None:
        pass


class Job:
    """A job folder."""

    def __init__(self, folder: Path, base_folder: Path) -> None:
        self.folder = folder
        self._base_folder = base_folder

    def order(
        self,
        *,
        rows: Any = ROWS,
        validation: Any = None,
        loop: dict[str, Any] | None = None,
        method: dict[str, Any] = METHOD,
        **values: Any,
    ) -> TrainOrder:
        """Write the files of an order and the order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = {"base": "tiny", "method": method, "seed": 3, "loop": {**LOOP, **(loop or {})}}
        order = TrainOrder(
            job_id="ftjob-1",
            spec=spec,
            base_folder=str(self._base_folder),
            training_file=self._write("training.jsonl", rows),
            validation_file=validation and self._write("validation.jsonl", validation),
            work_folder=str(self.folder / "out"),
            **values,
        )
        (self.folder / "job.json").write_bytes(msgspec.json.encode(order))
        return order

    def _write(self, name: str, rows: Any) -> str:
        content = "\n".join(json.dumps(row) for row in rows) if isinstance(rows, list) else rows
        (self.folder / name).write_text(content)
        return str(self.folder / name)

    def start(self, **environment: str) -> "subprocess.Popen[bytes]":
        """Start the real trainer."""
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.train.run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        tell(child, f"train {self.folder}")
        return child


@pytest.fixture
def make_job(tmp_path: Path, base_folder: Path) -> Callable[..., Job]:
    def make(name: str = "job") -> Job:
        return Job(tmp_path / name, base_folder)

    return make


def carry_out(order: TrainOrder, *, asks_after: int | None = None) -> list[Any]:
    """Train in this process; return what was said."""
    channel = Recording(asks_after=asks_after)
    gang = Gang()
    gang.join(train(order, channel), channel)
    while gang.members:
        gang.beat()
    return channel.messages


def tell(child: "subprocess.Popen[bytes]", command: str) -> None:
    """Say something to a trainer."""
    child.stdin.write(f"{command}\n".encode())
    child.stdin.flush()


def finish(child: "subprocess.Popen[bytes]") -> list[Any]:
    """Return the rest of what a trainer says of its only job, and let it end."""
    with child:
        messages = []
        for line in child.stdout:
            messages.append(read(line))
            if isinstance(messages[-1], FINAL):
                child.stdin.close()
        child.wait()
    return messages


def read(line: bytes) -> Any:
    """Decode one message."""
    return msgspec.json.decode(line, type=Said).message


def values_of(messages: list[Any]) -> dict[int, dict[str, float]]:
    """Return what was measured, by step."""
    found: dict[int, dict[str, float]] = {}
    for message in messages:
        if type(message).__name__ == "Metrics":
            found.setdefault(message.step, {}).update(message.values)
    return found


def weights_hash(messages: list[Any]) -> str:
    """Return the hash of the tensors that a run ended with."""
    path = Path(messages[-1].adapter_folder) / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("wide"), **WIDE)


@pytest.fixture
def make_order(tmp_path, wide_folder):
    made = []

    def make(*, loop=None, **values):
        made.append(values)
        job = Job(tmp_path / f"job-{len(made)}", wide_folder)
        return job.order(loop={"n_epochs": 1, "batch_size": 4, **(loop or {})}, **values)

    return make


@pytest.fixture
def together(monkeypatch):
    """How many jobs shared each stream."""
    counts = []

    def spy(batches):
        counts.append(len(batches))
        return score_together(batches)

    score_together = module.score_together
    monkeypatch.setattr(module, "score_together", spy)
    return counts
