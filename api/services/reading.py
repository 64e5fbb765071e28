"""What embeddings and classifications have in common: inputs read a few at a time."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from api.errors import Refused
from api.services.chat import turns
from models.spec import Input

ReplyT = TypeVar("ReplyT")


def to_input(item: object) -> Input:
    """Return one input as the engine takes it: a text, token ids, or messages."""
    if isinstance(item, str):
        return Input(text=item)
    if isinstance(item, list) and item and isinstance(item[0], int):
        return Input(ids=item)
    return Input(messages=turns(item))


async def in_batches(
    inputs: Sequence[Input],
    *,
    size: int,
    ask: Callable[[list[Input]], Awaitable[ReplyT]],
) -> list[ReplyT]:
    """Ask about `size` inputs at a time, one batch after the other, so that others get a turn."""
    replies = []
    try:
        for start in range(0, len(inputs), size):
            replies.append(await ask(list(inputs[start : start + size])))
    except Refused as refusal:
        if refusal.param in ("messages", "prompt", "text", "ids", "inputs"):
            refusal.param = "input"
        raise
    return replies
