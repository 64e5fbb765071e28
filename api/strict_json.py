"""JSON as the standard has it: what Python would wave through, or choke on, is a 400."""

import json
from collections import Counter
from functools import partial
from math import isfinite
from typing import Any, NoReturn

from core.errors import InvalidRequest

INTEGERS = range(-(2**63), 2**63)
LONGEST_INTEGER = 20
MOST_KEYS = 1024


class _Unfit(str):
    """A number as it is written, of more than 64 bits, until it is known where it stands."""


def parse_json(body: bytes) -> Any:
    """Return the value of a UTF-8 JSON text.

    Refused: invalid UTF-8, NaN and infinities, numbers over 64 bits, duplicate keys, more keys
    than any object has, nesting that exhausts the stack, NUL and lone surrogates in texts (no
    database stores them).
    """
    unfit: list[_Unfit] = []
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=partial(_parse_float, unfit=unfit),
            parse_int=partial(_parse_int, unfit=unfit),
            object_pairs_hook=_parse_object,
        )
        if unfit or b"\\u" in body:
            _check(value, path="")
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


def _parse_float(text: str, *, unfit: list[_Unfit]) -> float | _Unfit:
    if isfinite(value := float(text)):
        return value
    unfit.append(_Unfit(text))
    return unfit[-1]


def _parse_int(text: str, *, unfit: list[_Unfit]) -> int | _Unfit:
    if len(text) <= LONGEST_INTEGER and int(text) in INTEGERS:
        return int(text)
    unfit.append(_Unfit(text))
    return unfit[-1]


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise _invalid(f"An object has {len(pairs)} keys; {MOST_KEYS} at most are read.")
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _invalid(f"The key {twice[:64]!r} is given twice.", param=twice[:64])
    return value


def _check(value: Any, *, path: str) -> None:
    """Raise for the first number or text that cannot be, by its place."""
    if isinstance(value, _Unfit):
        where = f" at '{path}'" if path else ""
        raise InvalidRequest(
            f"The number {value[:32]}{where} does not fit in 64 bits.",
            code="invalid_value",
            param=path or None,
        )
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InvalidRequest(
                f"The text at '{path}' holds a NUL character or half of a surrogate pair.",
                code="invalid_text",
                param=path or None,
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, path=path)
            _check(item, path=f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, path=f"{path}.{number}" if path else str(number))
