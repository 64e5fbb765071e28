"""The files of a folder of chat sets."""

from pathlib import Path

from cli.demo import EXAMPLES

DATA = EXAMPLES.parent
SETS = ("banking77", "e2e_nlg")
"""Whose rows are asked and trained, where the folder has them."""
TRAINING = ("train_chat.jsonl", "train.jsonl")


def find_texts(folder: Path) -> list[Path]:
    """Return the files from which prompts are cut: the known sets', or all there are."""
    known = [folder / name for name in SETS if (folder / name).is_dir()]
    files = [path for place in known or [folder] for path in sorted(place.rglob("*.jsonl"))]
    if not files:
        raise FileNotFoundError(f"{folder} holds no JSONL file.")
    return files


def find_training(folder: Path) -> Path:
    """Return a file to train on: of the first set that has one."""
    for name in TRAINING:
        files = [path for path in find_texts(folder) if path.name == name]
        if files:
            return files[0]
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(TRAINING)}.")
