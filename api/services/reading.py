"""What embeddings and classifications have in common: inputs read a few at a time."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from api.errors import Refused
from api.schemas.chat import Message
from api.services.chat import turns
from models.wire import Input

ReplyT = TypeVar("ReplyT")


def to_inputs(items: Sequence[str | list[int] | list[Message]]) -> list[Input]:
    """Return inputs as the engine takes them: texts, token ids, or messages."""
    return [_to_input(item) for item in items]


def _to_input(item: str | list[int] | list[Message]) -> Input:
    if isinstance(item, str):
        return Input(text=item)
    ids = [token for token in item if isinstance(token, int)]
    messages = [turn for turn in item if isinstance(turn, Message)]
    return Input(messages=turns(messages)) if messages else Input(ids=ids)


async def in_batches(
    inputs: Sequence[Input],
    *,
    size: int,
    ask: Callable[[list[Input]], Awaitable[ReplyT]],
) -> list[ReplyT]:
    """Ask about `size` inputs at a time, one batch after the other, so that others get a turn."""
    replies = []
    for start in range(0, len(inputs), size):
        try:
            replies.append(await ask(list(inputs[start : start + size])))
        except Refused as refusal:
            refusal.param = _param(refusal.param, start=start, count=len(inputs))
            raise
    return replies


def _param(named: str | None, *, start: int, count: int) -> str | None:
    """Return what the caller calls the input that the engine names within its batch."""
    if named in ("messages", "prompt", "text", "ids", "inputs"):
        return "input"
    if found := re.fullmatch(r"inputs\[(\d+)\]", named or ""):
        return f"input.{start + int(found[1])}" if count > 1 else "input"
    return named
