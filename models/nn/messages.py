"""What a conversation may hold, checked and flattened before any template sees it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from core.errors import InvalidRequest

Message = Mapping[str, Any]
"""`role`, `content`, and on assistant messages perhaps `weight`."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_PRIVATE_USE = range(0xE000, 0xF900)


class Turn(NamedTuple):
    """One checked message."""

    role: str
    content: str
    is_learned: bool
    """An assistant message whose weight is not zero."""


def normalise(messages: Sequence[Message]) -> list[Turn]:
    """Check roles and join content parts; `InvalidRequest` names the message at fault."""
    if not messages:
        raise _invalid("messages is empty.", param="messages")
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]


def check_text(text: str, *, param: str) -> str:
    """Return `text` unless it cannot be written as UTF-8 (a lone surrogate from JSON)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(f"{param} is not valid Unicode text.", param=param) from None
    return text


def unused_character(texts: Iterable[str]) -> str:
    """Return a private-use character that occurs in none of the texts."""
    used = set().union(*texts)
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise _invalid("The text uses every private-use character.", param="messages")


def _turn(message: Message, param: str) -> Turn:
    role = message.get("role")
    if role not in _ROLES:
        raise _invalid(f"{param}.role must be one of {', '.join(_ROLES)}.", param=f"{param}.role")
    for name in ("tool_calls", "function_call"):
        if message.get(name):
            raise _invalid(f"{param}.{name} is not supported.", param=f"{param}.{name}")
    content = check_text(
        _content(message.get("content"), f"{param}.content"), param=f"{param}.content"
    )
    is_learned = role == "assistant" and message.get("weight") != 0
    return Turn(_ROLES[role], content, is_learned)


def _content(content: object, param: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, Mapping) and part.get("type") == "text"
        ]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise _invalid(f"{param} must be a string or a list of text parts.", param=param)


def _invalid(message: str, *, param: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_messages", param=param)
