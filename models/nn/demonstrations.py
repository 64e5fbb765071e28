"""Solved examples before a request: turns of its conversation, or completions before its text.

In a conversation they stand behind the leading system turns; before a bare prompt each is a
completion of its own, with its end. Training, measuring and serving all put them there.
"""

from collections.abc import Sequence
from itertools import takewhile

from models.nn.chat import Renderer
from models.nn.messages import Message, normalise
from models.nn.problem import Pair


def show_in_chat(pairs: Sequence[Pair], messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with the pairs in it, which are not to be learnt."""
    lead = len(list(takewhile(lambda turn: turn.role == "system", normalise(messages))))
    return [*messages[:lead], *(turn for pair in pairs for turn in _turns(pair)), *messages[lead:]]


def show_before_text(pairs: Sequence[Pair], renderer: Renderer) -> list[int]:
    """Return the ids that stand before a bare prompt's own."""
    return [
        token
        for pair in pairs
        for token in renderer.completion_example(pair.prompt, pair.answer).ids
    ]


def _turns(pair: Pair) -> list[Message]:
    return [
        {"role": "user", "content": pair.prompt},
        {"role": "assistant", "content": pair.answer, "weight": 0},
    ]
