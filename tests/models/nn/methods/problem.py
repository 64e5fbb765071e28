"""The trainer's own problem over a tiny base of bytes, and runs of the trainer on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from models.nn.forward import Part, forward
from models.nn.head import class_logits, pool
from models.nn.methods.base import Method
from models.nn.terms import HeadTerm
from models.spec import LoopSpec, TrainOrder
from tests.tiny import make_tiny_base
from worker.train.files import Files
from worker.train.gang import Gang
from worker.train.problem import Question, TrainingProblem
from worker.train.run import train

REVIEWS = [
    (f"{opening} film number {number} was {word}", answer)
    for number, opening in enumerate(["The", "Our", "That old", "This new", "A", "My last"])
    for word, answer in [("good", "yes"), ("bad", "no"), ("so so", "perhaps")]
]
Rows = Sequence[tuple[str, str]]
LOOP = {
    "n_epochs": 4,
    "batch_size": 6,
    "learning_rate": 0.01,
    "micro_batch_tokens": 256,
    "dtype": "float32",
}


class Silent:
    """A channel that keeps what is said and never asks for anything."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def say(self, message: Any) -> None:
        self.messages.append(message)

    def stay_alive(self) -> None:
        pass

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class World:
    """A base on disk and in memory, and a folder for files."""

    folder: Path
    base_folder: Path
    backbone: Backbone
    renderer: Renderer

    @classmethod
    def make(cls, folder: Path, **config: Any) -> "World":
        """Make a tiny base whose hidden states tell texts apart."""
        base_folder = make_tiny_base(folder / "base", initializer_range=0.2, **config)
        backbone = Backbone.load(base_folder, dtype=torch.float32)
        return cls(folder, base_folder, backbone, Renderer.load(base_folder))

    def order(self, block: dict[str, Any], *, rows: Rows = REVIEWS, **loop: Any) -> TrainOrder:
        """Write the files of a job that also measures itself on its rows."""
        folder = Path(mkdtemp(dir=self.folder))
        path = folder / "rows.jsonl"
        path.write_text("\n".join(json.dumps(_chat(*row)) for row in rows))
        return TrainOrder(
            job_id="ftjob-1",
            spec={"base": "tiny", "method": block, "seed": 3, "loop": {**LOOP, **loop}},
            base_folder=str(self.base_folder),
            training_file=str(path),
            validation_file=str(path),
            work_folder=str(folder / "out"),
        )

    def problem(self, method: Method, *, rows: Rows = REVIEWS) -> TrainingProblem:
        """Return the rows as the method may look at them."""
        order = self.order(method.model_dump(mode="json"), rows=rows)
        files = Files(order, renderer=self.renderer, max_length=512, stay_alive=lambda: None)
        return TrainingProblem(
            files,
            method=method,
            backbone=self.backbone,
            loop=LoopSpec.model_validate(order.spec["loop"]),
            seed=3,
            check=lambda: None,
        )

    def train(self, block: dict[str, Any], *, rows: Rows = REVIEWS, **loop: Any) -> list[Any]:
        """Run the real trainer; return what it said."""
        channel, gang = Silent(), Gang()
        gang.join(train(self.order(block, rows=rows, **loop), channel), channel)
        while gang.members:
            gang.beat()
        torch.use_deterministic_algorithms(mode=False)
        return channel.messages

    def ask(self, text: str) -> Question:
        """Return a text that waits for demonstrations."""
        return Question(text, self.backbone, self.renderer)

    @torch.no_grad()
    def scores(self, text: str, head: HeadTerm) -> Tensor:
        """Return (C,) of a question, by the way that serving goes."""
        ids = torch.tensor(self.renderer.prompt([{"role": "user", "content": text}]))
        hidden = forward(self.backbone, [Part(ids, (len(ids),))]).hidden_td
        return class_logits(pool(hidden, [len(ids)], pooling=head.pooling), head=head)[0]


def measured(said: list[Any]) -> dict[str, float]:
    """Return what a run measured last."""
    values: dict[str, float] = {}
    for message in said:
        values |= getattr(message, "values", {})
    return values


def curve(said: list[Any]) -> list[float]:
    """Return the training losses of a run."""
    reports = (getattr(message, "values", {}) for message in said)
    return [values["train_loss"] for values in reports if "train_loss" in values]


def _chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
