"""Rows of a data set in the forms that training needs: examples, questions, answers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from core.errors import InvalidRequest
from models.dataset import AnyTurn, AssistantTurn, ChatRow, CompletionRow, Row, iterate
from models.dataset_problems import Problem as RowProblem
from models.nn.chat import Example, Renderer
from models.nn.demonstrations import show_before_text, show_in_chat
from models.nn.messages import Message
from models.nn.problem import Pair

Show = Callable[[Pair], Sequence[Pair]]
"""Chooses solved examples to show before a question."""


def render_example(row: Row, *, renderer: Renderer, show: Show | None = None) -> Example:
    """Return a row's tokens and labels, behind the examples that `show` picks for it."""
    if isinstance(row, ChatRow):
        messages = [_message(turn) for turn in row.messages]
        if show is not None:
            messages = show_in_chat(show(pair_of(row)), messages)
        return renderer.example(messages)
    if isinstance(row, CompletionRow):
        own = renderer.completion_example(row.prompt, row.completion)
        before = show_before_text(show(pair_of(row)), renderer) if show is not None else []
        return Example(before + own.ids, [False] * len(before) + own.labelled)
    return renderer.text_example(row.text)


def render_prompt(row: Row, *, renderer: Renderer) -> list[int]:
    """Return the tokens of what comes before a row's last answer."""
    if isinstance(row, ChatRow):
        last = _last_answer(row)
        return renderer.prompt([_message(turn) for turn in row.messages[:last]])
    if isinstance(row, CompletionRow):
        return renderer.completion_prompt(row.prompt)
    raise _no_answer()


def pair_of(row: Row) -> Pair:
    """Return the last turn of the user and the answer to it; `InvalidRequest` where none is."""
    if isinstance(row, CompletionRow):
        return Pair(row.prompt, row.completion)
    if isinstance(row, ChatRow):
        last = _last_answer(row)
        asked = [turn.text for turn in row.messages[:last] if turn.role == "user"]
        if asked:
            return Pair(asked[-1], row.messages[last].text)
    raise _no_answer()


def good_rows(path: Path) -> Iterable[Row]:
    """Go through the rows of a file that training keeps."""
    return (row for _, row in iterate(path) if not isinstance(row, RowProblem))


def describe_prompts(path: Path) -> dict[str, Any]:
    """Return how to put a bare text: the file's format, the system turn that all rows share."""
    kind, systems = "text", set[str | None]()
    for row in good_rows(path):
        if isinstance(row, ChatRow):
            kind = "chat"
            turns = [turn.text for turn in row.messages if turn.role == "system"]
            systems.add(turns[0] if turns else None)
        elif isinstance(row, CompletionRow):
            kind = "completion"
    return {"format": kind, "system": systems.pop() if len(systems) == 1 else None}


def _last_answer(row: ChatRow) -> int:
    """Return the index of the last answer that is learnt."""
    for index in range(len(row.messages) - 1, 0, -1):
        turn = row.messages[index]
        if isinstance(turn, AssistantTurn) and turn.trained:
            return index
    raise _no_answer()


def _message(turn: AnyTurn) -> Message:
    weight = turn.weight if isinstance(turn, AssistantTurn) else None
    return {"role": turn.role, "content": turn.text, "weight": weight}


def _no_answer() -> InvalidRequest:
    return InvalidRequest(
        "This method learns answers to questions; every row needs a turn of the user, or a prompt, "
        "and an answer to it.",
        code="no_answers",
        param="training_file",
    )
