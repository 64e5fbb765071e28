"""The two files of a comparison, from a folder."""

import random
from pathlib import Path
from typing import NamedTuple

from cli.demo import EXAMPLES

NAMES = (("train_chat.jsonl", "dev_chat.jsonl"), ("train.jsonl", "test.jsonl"))


class Data(NamedTuple):
    """What is trained on and what is asked; `rows` counts both."""

    name: str
    train: Path
    valid: Path
    rows: dict[str, int]


def find_data(folder: Path = EXAMPLES, *, rows: int, seed: int, scratch: Path) -> Data:
    """Return a folder's files, of the validation file at most `rows` rows, chosen by chance.

    The trainer measures its loss on every validation row, so their number is a part of the budget.
    """
    for train, valid in NAMES:
        if (folder / train).is_file() and (folder / valid).is_file():
            lines = (folder / valid).read_text().splitlines(keepends=True)
            if len(lines) > rows:
                lines = random.Random(seed).sample(lines, rows)
            chosen = scratch / "validation.jsonl"
            chosen.write_text("".join(lines))
            with (folder / train).open() as stream:
                trained = sum(1 for _ in stream)
            counts = {"training": trained, "validation": len(lines)}
            return Data(folder.name, folder / train, chosen, counts)
    wanted = " or ".join(" and ".join(pair) for pair in NAMES)
    raise FileNotFoundError(f"{folder} must hold {wanted}.")
