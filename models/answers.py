"""Rows of a data set as questions with answers, and the labels that answers may be; no torch."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from core.errors import InvalidRequest
from models.dataset import AssistantTurn, ChatRow, CompletionRow, Row, iterate
from models.dataset_problems import LineProblem
from models.nn.classifier import decide_labels
from models.nn.methods.base import Method
from models.nn.problem import Pair


def good_rows(path: Path) -> Iterable[Row]:
    """Go through the rows of a file that training keeps."""
    return (row for _, row in iterate(path) if not isinstance(row, LineProblem))


def read_pairs(path: Path, *, param: str = "training_file") -> Iterator[Pair]:
    """Yield the good rows as questions and answers; `InvalidRequest` names the line of another."""
    for line, row in iterate(path):
        if isinstance(row, LineProblem):
            continue
        try:
            yield pair_of(row)
        except InvalidRequest as error:
            said = f"Line {line}: {error.message}"
            raise InvalidRequest(said, code=error.code, param=param) from error


def pair_of(row: Row) -> Pair:
    """Return the last turn of the user and the answer to it; `InvalidRequest` where none is."""
    if isinstance(row, CompletionRow):
        return Pair(row.prompt, row.completion)
    if isinstance(row, ChatRow):
        last = last_answer(row)
        asked = [turn.text for turn in row.messages[:last] if turn.role == "user"]
        if asked:
            return Pair(asked[-1], row.messages[last].text)
    raise no_answer()


def last_answer(row: ChatRow) -> int:
    """Return where the last learnt answer is; `InvalidRequest` where none follows a turn."""
    for index in range(len(row.messages) - 1, 0, -1):
        turn = row.messages[index]
        if isinstance(turn, AssistantTurn) and turn.trained:
            return index
    raise no_answer()


def no_answer() -> InvalidRequest:
    """Return the error of a row without a question or without its answer."""
    return InvalidRequest(
        "This method learns answers to questions; every row needs a turn of the user, or a prompt, "
        "and an answer to it.",
        code="no_answers",
        param="training_file",
    )


def index_labels(path: Path, labels: Sequence[str], *, param: str) -> list[int]:
    """Return of every row the index of its answer among `labels`, or say which is none of them."""
    index = {label: number for number, label in enumerate(labels)}
    found: list[int] = []
    unknown: set[str] = set()
    for pair in read_pairs(path, param=param):
        if pair.label in index:
            found.append(index[pair.label])
        else:
            unknown.add(pair.label)
    if unknown:
        raise InvalidRequest(
            f"The answer {min(unknown)[:80]!r} is none of the {len(labels)} labels that are "
            "trained; mend the rows, or name all labels in the method's `labels`.",
            code="unknown_label",
            param=param,
        )
    return found


def check_answers(method: Method, training: Path, validation: Path | None) -> None:
    """Raise `InvalidRequest` for files from which this method could not learn answers.

    Of rows that were read only their labels are kept: files may be larger than memory.
    """
    if method.class_labels is None and "demonstrations" not in method.sites:
        return
    pairs = read_pairs(training)
    if method.class_labels is None:
        deque(pairs, maxlen=0)  # each has an answer
        return
    labels = decide_labels(method.class_labels, pairs)
    if validation is not None:
        index_labels(validation, labels, param="validation_file")
