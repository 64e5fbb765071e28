"""JSON as the standard has it: what Python would wave through, or choke on, is a 400."""

import json
from collections import Counter
from math import isfinite
from typing import Any, NoReturn

from core.errors import InvalidRequest

INTEGERS = range(-(2**63), 2**63)
LONGEST_INTEGER = 20
MOST_KEYS = 1024


def parse_json(body: bytes) -> Any:
    """Return the value of a UTF-8 JSON text.

    Refused: invalid UTF-8, NaN and infinities, integers over 64 bits, duplicate keys, more keys
    than any object has, nesting that exhausts the stack, NUL and lone surrogates in texts (no
    database stores them).
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_int,
            object_pairs_hook=_parse_object,
        )
        if b"\\u" in body:
            _check_texts(value, path="")
    except UnicodeDecodeError as error:
        raise _invalid(f"The body is not UTF-8: byte {error.start} cannot be read.") from error
    except json.JSONDecodeError as error:
        raise _invalid(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise _invalid("The body is nested too deeply.") from error
    return value


def _invalid(message: str, *, param: str | None = None) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_json", param=param)


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not a JSON number.")


def _parse_float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise _invalid(f"The number {text[:32]} is too large.")
    return value


def _parse_int(text: str) -> int:
    if len(text) > LONGEST_INTEGER or int(text) not in INTEGERS:
        raise _invalid(f"The number {text[:32]} does not fit in 64 bits.")
    return int(text)


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise _invalid(f"An object has {len(pairs)} keys; {MOST_KEYS} at most are read.")
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _invalid(f"The key {twice[:64]!r} is given twice.", param=twice[:64])
    return value


def _check_texts(value: Any, *, path: str) -> None:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InvalidRequest(
                f"The text at '{path}' holds a NUL character or half of a surrogate pair.",
                code="invalid_text",
                param=path or None,
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key, path=path)
            _check_texts(item, path=f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_texts(item, path=f"{path}.{number}" if path else str(number))
