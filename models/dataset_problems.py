"""Why a line of a data set cannot be trained on: one stable code and one sentence with a way out.

Only lines that the fast, typed decoding did not take come here, so that clarity beats speed.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

MOST_TURNS = 256
"""Whoever renders an example renders it up to each of its answers: time grows with the square."""

ROLES = ("system", "developer", "user", "assistant")
_TURN_KEYS = ("role", "content", "name", "weight")
_FORMAT_KEYS = (("messages",), ("prompt", "completion"), ("text",))
_UNSUPPORTED = {
    "tools": "tool definitions",
    "functions": "function definitions",
    "parallel_tool_calls": "tool calls",
    "tool_calls": "tool calls",
    "tool_call_id": "tool calls",
    "function_call": "function calls",
    "refusal": "refusals",
    "audio": "audio",
    "reasoning_content": "reasoning texts",
    "preferred_output": "preference pairs",
    "non_preferred_output": "preference pairs",
}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class LineProblem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wrong with one line (its first fault), where in it, and what to do."""

    line: int
    code: str
    message: str
    param: str | None = None


class _Fault(Exception):
    """The first fault of a row, on its way to becoming a `LineProblem`."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def examine(line: bytes, *, number: int) -> dict[str, Any] | LineProblem:
    """Return the row as a plain object without its null keys, or the first problem of it."""
    try:
        row = _check_row(_parse(line))
    except _Fault as fault:
        return LineProblem(line=number, code=fault.code, message=fault.message, param=fault.param)
    return row


def _parse(line: bytes) -> Any:
    """Decode a line strictly: UTF-8, RFC 8259, no key twice."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        hint = "UTF-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise _Fault(
            "invalid_utf8",
            f"Byte {error.start + 1} of the line is {hint}; save the file as UTF-8.",
        ) from error
    if line.count(0) * 3 > len(line):
        said = "The line is full of NUL bytes, as UTF-16 and UTF-32 are; save the file as UTF-8."
        raise _Fault("invalid_utf8", said)
    try:
        msgspec.json.decode(line)
        return json.loads(text, object_pairs_hook=_object_without_repeats)
    except RecursionError as error:
        raise _Fault("invalid_json", "The line is nested too deeply to be an example.") from error
    except (msgspec.MsgspecError, ValueError) as error:
        if _SURROGATE.search(line) and _is_lenient_json(text):
            raise _Fault(
                "invalid_text",
                "A text holds half of a surrogate pair (\\ud800 to \\udfff alone), "
                "which is no character; remove it or write the whole pair.",
            ) from error
        reason = str(error).removeprefix("JSON is malformed: ")
        raise _Fault(
            "invalid_json",
            f"The line is not valid JSON ({reason}); write each example as one JSON object "
            "on one line.",
        ) from error


def _is_lenient_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault("duplicate_key", f"The key {_show(twice)} occurs twice; keep one of them.")
    return result


def _check_row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(
            "not_an_object",
            "The line is JSON but not an object; write "
            '{"messages": [...]}, {"prompt": "...", "completion": "..."} or {"text": "..."}.',
        )
    row = _without_empty_keys(value)
    keys = next((keys for keys in _FORMAT_KEYS if row.keys() & set(keys)), None)
    _refuse_unknown(row, known=keys or ())
    if keys is None:
        raise _Fault(
            "missing_messages",
            'The example has no "messages" (nor "prompt" and "completion", nor "text").',
            param="messages",
        )
    if keys == ("messages",):
        return {"messages": _check_messages(row["messages"])}
    for key in keys:
        _check_text(row.get(key), param=key)
    if row.get("text") == "":
        raise _Fault("nothing_to_train", "The text is empty; remove the line.", param="text")
    return row


def _check_messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise _Fault("missing_messages", '"messages" must be a list.', param="messages")
    if not value:
        raise _Fault("empty_messages", '"messages" is empty; remove the line.', param="messages")
    if len(value) > MOST_TURNS:
        raise _Fault(
            "too_many_turns",
            f"The example has {len(value)} messages; split it into examples of at most "
            f"{MOST_TURNS}.",
            param="messages",
        )
    turns = [_check_turn(turn, param=f"messages[{i}]") for i, turn in enumerate(value)]
    weights = [turn.get("weight") for turn in turns if turn["role"] == "assistant"]
    if not weights:
        raise _Fault(
            "no_assistant_message",
            "The example has no assistant message, so that there is nothing to learn from it.",
            param="messages",
        )
    if all(weight == 0 for weight in weights):
        raise _Fault(
            "nothing_to_train",
            "Every assistant message has weight 0; give one of them weight 1 or remove the line.",
            param="messages",
        )
    return turns


def _check_turn(value: Any, *, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Fault("invalid_role", f"{param} must be an object.", param=param)
    turn = _without_empty_keys(value)
    role = turn.get("role")
    if role in ("tool", "function"):
        raise _unsupported(f"{role} messages", param=f"{param}.role")
    if role not in ROLES:
        shown = "no role" if role is None else f"the role {_show(role)}"
        raise _Fault(
            "invalid_role", f"{param} has {shown}; use one of {', '.join(ROLES)}.", param=param
        )
    _refuse_unknown(turn, known=_TURN_KEYS, prefix=f"{param}.")
    _check_weight(turn, param=f"{param}.weight")
    if not isinstance(turn.get("name", ""), str):
        raise _Fault("invalid_content", f"{param}.name must be a text.", param=f"{param}.name")
    content = turn.get("content")
    if isinstance(content, list):
        turn["content"] = list(_check_parts(content, param=f"{param}.content"))
    else:
        _check_text(content, param=f"{param}.content")
    return turn


def _check_weight(turn: dict[str, Any], *, param: str) -> None:
    weight = turn.get("weight")
    if weight is None:
        return
    if turn["role"] != "assistant":
        raise _Fault("invalid_weight", "Only assistant messages take a weight.", param=param)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _Fault("invalid_weight", f"{param} is {_show(weight)}; use 0 or 1.", param=param)
    turn["weight"] = int(weight)


def _check_parts(parts: list[Any], *, param: str) -> Iterator[dict[str, Any]]:
    if not parts:
        raise _Fault("invalid_content", f"{param} has no parts.", param=param)
    for index, value in enumerate(parts):
        here = f"{param}[{index}]"
        if not isinstance(value, dict) or "type" not in value:
            raise _Fault(
                "invalid_content",
                f'{here} must be an object like {{"type": "text", "text": "..."}}.',
                param=here,
            )
        part = _without_empty_keys(value)
        if part.get("type") != "text":
            raise _unsupported(f"content parts of type {_show(part.get('type'))}", param=here)
        _refuse_unknown(part, known=("type", "text"), prefix=f"{here}.")
        _check_text(part.get("text"), param=f"{here}.text")
        yield part


def _check_text(value: Any, *, param: str) -> None:
    if value is None:
        raise _Fault("missing_content", f"{param} is missing; write a text.", param=param)
    if not isinstance(value, str):
        raise _Fault("invalid_content", f"{param} is {_show(value)}, not a text.", param=param)
    if "\x00" in value:
        raise _Fault(
            "nul_character", f"{param} holds a NUL character (\\u0000); remove it.", param=param
        )


def _without_empty_keys(value: dict[str, Any]) -> dict[str, Any]:
    """Drop what says nothing: nulls, and empty lists of what is not supported."""
    return {
        key: item
        for key, item in value.items()
        if item is not None and not (item == [] and key in _UNSUPPORTED)
    }


def _refuse_unknown(value: dict[str, Any], *, known: tuple[str, ...], prefix: str = "") -> None:
    for key in value:
        if key in known:
            continue
        if key in _UNSUPPORTED:
            raise _unsupported(_UNSUPPORTED[key], param=f"{prefix}{key}")
        if known:
            raise _Fault(
                "unknown_key",
                f"The key {_show(key)} would be ignored here; remove it "
                f"(known keys: {', '.join(known)}).",
                param=f"{prefix}{key[:64]}",
            )


def _unsupported(what: str, *, param: str) -> _Fault:
    return _Fault(
        "unsupported_feature",
        f"Training on {what} is not supported; remove them, or the line.",
        param=param,
    )


def _show(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
