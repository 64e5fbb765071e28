"""What is asked of every model: the validation rows without their answers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import InvalidData, InvalidRequest
from models import dataset
from models.answers import last_answer
from models.dataset import ChatRow, CompletionRow, Row
from models.dataset_problems import LineProblem
from models.wire import Input

MOST_LABELS = 50
ROWS_PER_LABEL = 5

Messages = list[dict[str, Any]]


class Question(NamedTuple):
    """A prompt, as a chat or as a text, and the answers that are right."""

    prompt: Messages | str
    references: tuple[str, ...]

    @property
    def messages(self) -> Messages | None:
        """The chat, if it is one."""
        return None if isinstance(self.prompt, str) else self.prompt

    @property
    def text(self) -> str | None:
        """The text, if it is no chat."""
        return self.prompt if isinstance(self.prompt, str) else None

    @property
    def input(self) -> Input:
        """The prompt as the engine reads it for labels."""
        return Input(text=self.text, messages=self.messages)


class Questions(NamedTuple):
    """The questions of a comparison, how answers are measured, the labels if they are labels."""

    items: list[Question]
    metric: str
    labels: list[str]


def read_questions(path: Path, *, metric: str, most: int, seed: int) -> Questions:
    """Read a validation file and choose at most `most` questions of it by chance.

    Labels are asked row by row. Else rows with the same prompt are one question, and their answers
    its references.
    """
    rows = [question for question in map(_question, _read(path)) if question is not None]
    if not rows:
        raise InvalidData(
            "The validation file has no row with a prompt and an answer to measure by.",
            param="validation_file",
            problems=[],
        )
    labels = sorted({row.references[0] for row in rows})
    chosen = choose_metric(metric, labels=len(labels), rows=len(rows))
    if chosen != "accuracy":
        rows, labels = _join(rows), []
    order = np.random.default_rng(seed).permutation(len(rows))[:most]
    return Questions([rows[index] for index in sorted(order)], chosen, labels)


def choose_metric(metric: str, *, labels: int, rows: int) -> str:
    """Return the metric that `auto` means: accuracy for a small set of labels, else BLEU."""
    if metric != "auto":
        return metric
    few = 2 <= labels <= MOST_LABELS and labels * ROWS_PER_LABEL <= rows
    return "accuracy" if few else "bleu"


def _read(path: Path) -> list[Row]:
    rows = []
    for _, item in dataset.iterate(path):
        if isinstance(item, LineProblem):
            raise InvalidData(
                f"Line {item.line} of the validation file: {item.message}",
                param="validation_file",
                problems=[],
            )
        rows.append(item)
    return rows


def _question(row: Row) -> Question | None:
    """Return a row as a question; None where nothing comes before the answer."""
    if isinstance(row, CompletionRow):
        return Question(row.prompt, (row.completion,)) if row.prompt else None
    if not isinstance(row, ChatRow):
        return None
    try:
        last = last_answer(row)
    except InvalidRequest:
        return None
    before = [{"role": turn.role, "content": turn.text} for turn in row.messages[:last]]
    return Question(before, (row.messages[last].text,))


def _join(rows: list[Question]) -> list[Question]:
    joined: dict[str, Question] = {}
    for row in rows:
        key = repr(row.prompt)
        earlier = joined.get(key)
        joined[key] = (
            Question(row.prompt, (*earlier.references, *row.references)) if earlier else row
        )
    return list(joined.values())
