"""Scores answers of the demo: the share of fields that are right."""

import json
from typing import Any


def score(answer: str, expected: str) -> float:
    """Return which part of the expected record's fields `answer` has right, from 0 to 1.

    The answer must be one JSON object; text around it or anything else scores 0.
    """
    wanted: dict[str, Any] = json.loads(expected)
    try:
        found = json.loads(answer)
    except ValueError:
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    right = [name for name, value in wanted.items() if found.get(name) == value]
    return len(right) / len(wanted)
