"""Rows of a data set in the forms that training needs: examples, questions, answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.answers import good_rows, last_answer, no_answer, pair_of
from models.dataset import AnyTurn, AssistantTurn, ChatRow, CompletionRow, Row
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
        last = last_answer(row)
        return renderer.prompt([_message(turn) for turn in row.messages[:last]])
    if isinstance(row, CompletionRow):
        return renderer.completion_prompt(row.prompt)
    raise no_answer()


def describe_prompts(path: Path) -> dict[str, Any]:
    """Return how to put a bare text: the file's format, and what all its rows have in common.

    That is the system turn of conversations, and the white space before completions.
    """
    kind, systems, leads = "text", set[str | None](), set[str]()
    for row in good_rows(path):
        if isinstance(row, ChatRow):
            kind = "chat"
            turns = [turn.text for turn in row.messages if turn.role == "system"]
            systems.add(turns[0] if turns else None)
        elif isinstance(row, CompletionRow):
            kind = "completion"
            words = row.completion.lstrip()
            leads.add(row.completion[: len(row.completion) - len(words)])
    return {
        "format": kind,
        "system": systems.pop() if len(systems) == 1 else None,
        "lead": leads.pop() if len(leads) == 1 else "",
    }


def _message(turn: AnyTurn) -> Message:
    weight = turn.weight if isinstance(turn, AssistantTurn) else None
    return {"role": turn.role, "content": turn.text, "weight": weight}
