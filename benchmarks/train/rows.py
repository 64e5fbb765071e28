"""The rows that both sides train on: read once, batched as the peer batches, written for each."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.train.protocol import IGNORED
from cli.demo import EXAMPLES
from models.dataset import Row, iterate
from models.dataset_problems import LineProblem
from models.nn.chat import Example, Renderer
from worker.train.plan import epoch_order
from worker.train.rows import render_example

SETS = ("banking77", "e2e_nlg")
FILES = ("train_chat.jsonl", "train.jsonl")
MOST_ROWS = 2000
SEED = 7
"""Unless the command line gives another one."""

_THINGS = (
    "kettle", "lamp", "rope", "paint brush", "garden hose", "pillow", "bread knife", "door handle",
    "tent", "rain coat", "bicycle pump", "candle", "flower pot", "desk chair", "torch", "ladder",
    "blanket", "frying pan", "hammer", "mirror",
)  # fmt: skip
_QUESTIONS = (
    "Which shelf is the {} on?",
    "Where do I find a {} in your shop?",
    "I am looking for the {}.",
    "Somebody has bought our last {}; where does the new one go, please?",
    "Do you still have a {}, and where?",
    "A {} came back from a customer. Which shelf?",
    "Where is the {} that was on offer last week?",
    "Can you tell me the place of the {}? My list is at home.",
    "{}?",
    "My daughter wants the {} that stands in your window. Where are the others?",
)
_AISLES = ("kitchen", "outdoor", "bedroom", "workshop", "garden")


@dataclass(frozen=True)
class RowSet:
    """Lines of a data set and the tokens of each."""

    name: str
    lines: tuple[str, ...]
    examples: tuple[Example, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [len(example.ids) for example in self.examples]


@dataclass(frozen=True)
class Work:
    """The same steps in two forms; `tokens` are those of the rows of each step, without padding."""

    name: str
    training_file: str
    token_file: str
    rows_per_step: int
    tokens: tuple[int, ...]
    max_length: int
    seed: int

    @property
    def steps(self) -> int:
        """How many optimiser steps it is."""
        return len(self.tokens)


def find_sets(data: Path | None, *, scratch: Path) -> dict[str, Path]:
    """Return the files to train on: those of a folder of sets, or rows that we ship."""
    if data is None:
        shelves = scratch / "shelves.jsonl"
        shelves.write_text("".join(f"{line}\n" for line in shelf_rows()))
        return {"support_mail": EXAMPLES / "train.jsonl", "shelves": shelves}
    found = {}
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        for name in FILES:
            if (folder / name).is_file():
                found.setdefault(folder.name, folder / name)
    chosen = {name: found[name] for name in SETS if name in found} or dict(list(found.items())[:2])
    if not chosen:
        raise FileNotFoundError(f"{data} has no folder with {' or '.join(FILES)}.")
    return chosen


def shelf_rows() -> list[str]:
    """Return a set of short rows: which shelf of a shop a thing is on."""
    pairs = list(product(_THINGS, _QUESTIONS))
    random.Random(7).shuffle(pairs)
    rows = []
    for thing, question in pairs:
        number = _THINGS.index(thing)
        answer = f"{_AISLES[number % len(_AISLES)]}, shelf {1 + number // len(_AISLES)}"
        turns = [("user", question.format(thing)), ("assistant", answer)]
        messages = [{"role": role, "content": content} for role, content in turns]
        rows.append(json.dumps({"messages": messages}))
    return rows


def read_set(name: str, path: Path, *, renderer: Renderer) -> RowSet:
    """Tokenise the first rows of a file; a row with a problem is left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip()][:MOST_ROWS]
    kept: list[tuple[str, Example]] = []
    for line, (_, row) in zip(lines, iterate(path), strict=False):
        if not isinstance(row, LineProblem):
            kept.append((line, _render(row, renderer)))
    return RowSet(name, tuple(line for line, _ in kept), tuple(example for _, example in kept))


def grouped_batches(
    lengths: Sequence[int], *, rows_per_step: int, steps: int, seed: int
) -> list[list[int]]:
    """Return batches as transformers' `group_by_length` makes them over the whole set.

    They are spread evenly over its first groups, each sorted by length: all lengths are there, as
    little is padding as in a whole epoch, and the run is short.
    """
    generator = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(list(lengths), rows_per_step, generator=generator)
    group = max(min(len(lengths) // (rows_per_step * 4), 50), 1)
    whole_groups = group * -(-steps // group)
    batches = [
        order[at * rows_per_step : (at + 1) * rows_per_step]
        for at in range(min(whole_groups, len(order) // rows_per_step))
    ]
    if len(batches) < steps:
        raise ValueError(f"{len(lengths)} rows have no {steps} batches of {rows_per_step}.")
    return [batches[(2 * at + 1) * len(batches) // (2 * steps)] for at in range(steps)]


def chat_work(
    rows: RowSet, batches: Sequence[Sequence[int]], *, folder: Path, seed: int = SEED
) -> Work:
    """Write chosen batches of a set for both sides; labels are where its answers are.

    The seed is that of the jobs: of the tensors that they start from.
    """
    chosen = [row for batch in batches for row in batch]
    return _write(
        rows.name,
        [rows.lines[row] for row in chosen],
        [rows.examples[row] for row in chosen],
        rows_per_step=len(batches[0]),
        folder=folder,
        seed=seed,
    )


def full_work(
    rows: RowSet,
    *,
    renderer: Renderer,
    length: int,
    rows_per_step: int,
    steps: int,
    folder: Path,
    seed: int = SEED,
) -> Work:
    """Write rows of exactly `length` tokens, all labelled but the first, made of a set's texts.

    They begin with a text that the seed draws.
    """
    count = rows_per_step * steps
    texts = _texts_of(rows, renderer=renderer, length=length, count=count, seed=seed)
    examples = []
    for text in texts:
        example = renderer.text_example(text)
        examples.append(Example(example.ids[:length], example.labelled[:length]))
    return _write(
        f"{rows_per_step}x{length}",
        [json.dumps({"text": text}) for text in texts],
        examples,
        rows_per_step=rows_per_step,
        folder=folder,
        max_length=length,
        seed=seed,
    )


def _texts_of(rows: RowSet, *, renderer: Renderer, length: int, count: int, seed: int) -> list[str]:
    """Join rows' own words until each text has more than `length` tokens."""
    pieces = [
        " ".join(turn["content"] for turn in json.loads(line)["messages"]) for line in rows.lines
    ]
    texts: list[str] = []
    at = random.Random(seed).randrange(len(pieces))
    while len(texts) < count:
        text = ""
        while len(renderer.encode(text)) <= length:
            text += pieces[at % len(pieces)] + "\n"
            at += 1
        texts.append(text)
    return texts


def _write(
    name: str,
    lines: list[str],
    examples: list[Example],
    *,
    rows_per_step: int,
    folder: Path,
    seed: int,
    max_length: int = 1024,
) -> Work:
    """Write rows, which are in the order of training, so that our own order of them is that one."""
    folder.mkdir(parents=True, exist_ok=True)
    placed = [""] * len(lines)
    for place, line in zip(epoch_order(len(lines), seed=seed, epoch=0), lines, strict=True):
        placed[int(place)] = line
    training_file, token_file = folder / f"{name}.jsonl", folder / f"{name}.tokens.jsonl"
    training_file.write_text("".join(f"{line}\n" for line in placed))
    with token_file.open("w") as stream:
        for ids, labelled in examples:
            labels = [i if learnt else IGNORED for i, learnt in zip(ids, labelled, strict=True)]
            row = {"input_ids": ids, "labels": [IGNORED, *labels[1:]]}
            stream.write(json.dumps(row) + "\n")
    lengths = [len(example.ids) for example in examples]
    tokens = [sum(lengths[at : at + rows_per_step]) for at in range(0, len(lengths), rows_per_step)]
    return Work(
        name, str(training_file), str(token_file), rows_per_step, tuple(tokens), max_length, seed
    )


def _render(row: Row, renderer: Renderer) -> Example:
    return render_example(row, renderer=renderer)
