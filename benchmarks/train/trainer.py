"""Transformers' Trainer over rows of tokens, whatever library has put an adapter on the network."""

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

from benchmarks.sides import JSON
from benchmarks.train.protocol import IGNORED


class Rows(Dataset[dict[str, list[int]]]):
    """Tokenised rows; `read` is the order in which they were asked for."""

    def __init__(self, path: Path, *, most: int | None) -> None:
        self.rows = [json.loads(line) for line in path.read_text().splitlines()][:most]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        self.read.append(index)
        row: dict[str, list[int]] = self.rows[index]
        return row


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Writes down when each optimiser step ended, and what was logged of it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter() - self.began)

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """Keep loss and norm."""
        if logs and "loss" in logs:
            self.logs.append(logs)


@dataclass(frozen=True)
class Pad:
    """Pads a batch on the right to its longest row."""

    pad_id: int

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and labels, each (rows, longest) int64."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: int) -> Tensor:
            return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

        lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
        return {
            "input_ids": padded("input_ids", self.pad_id),
            "attention_mask": (torch.arange(longest) < lengths).long(),
            "labels": padded("labels", IGNORED),
        }


class InOrder(Trainer):  # type: ignore[misc]  # transformers has no types here
    """Reads rows in the order in which they lie: they have been grouped by length already."""

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


def run(question: JSON, *, build: Callable[[JSON], nn.Module], save_to: Path | None = None) -> JSON:
    """Train by the Trainer; return the curves, the times, the rows and the most memory so far."""
    layout, most = question["layout"], question.get("steps")
    rows_per_step = question["rows_per_step"]
    rows = Rows(Path(question["token_file"]), most=most and most * rows_per_step)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=build(question),
            args=arguments(question, folder=folder),
            train_dataset=rows,
            data_collator=_collator(layout, pad_id=question["pad_id"]),
            callbacks=[clock],
        )
        trainer.train()
    if save_to is not None:
        trainer.save_model(str(save_to))
    lengths = [len(rows.rows[index]["input_ids"]) for index in rows.read]
    return {
        "losses": [log["loss"] for log in clock.logs],
        "norms": [log["grad_norm"] for log in clock.logs],
        "tokens": [
            sum(lengths[at : at + rows_per_step]) for at in range(0, len(lengths), rows_per_step)
        ],
        "ends": clock.ends,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def arguments(question: JSON, *, folder: str) -> TrainingArguments:
    """Return the Trainer's settings: ours in its words; batches come as they were grouped."""
    layout = question["layout"]
    # What arguments with `bf16` leave there, older ones without it read.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=layout["rows"],
        gradient_accumulation_steps=question["rows_per_step"] // layout["rows"],
        learning_rate=question["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=layout["autocast"],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=question["seed"],
    )


def give_float32_masters(model: nn.Module) -> None:
    """Train in float32 what a library leaves in bfloat16: prompts, gains, bottlenecks."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _collator(layout: JSON, *, pad_id: int) -> Callable[[Any], Any]:
    if layout["padding"] == "free":
        return DataCollatorWithFlattening()
    return Pad(pad_id)
