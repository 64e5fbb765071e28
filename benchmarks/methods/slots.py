"""How much of a meaning representation its realisation says: `name[Cocum], area[riverside]`."""

import re
from collections.abc import Iterable
from typing import Any

SLOT = re.compile(r"\w[\w ]*\[([^\]]+)\]")
UNSAID = {"yes", "no"}
"""Values that nobody says word for word."""


def values_in(text: str) -> list[str]:
    """Return the values of the slots of a text that a description must repeat."""
    return [value for value in SLOT.findall(text) if value not in UNSAID]


def exact_slots(lines: Iterable[dict[str, Any]]) -> float | None:
    """Return the share of slot values that appear in the answers.

    None where most questions have no slots: brackets in a text are not yet a representation.
    `lines` are those of an answers file: `prompt` and `answer`.
    """
    asked = said = wanted = questions = 0
    for line in lines:
        answer = line["answer"].casefold()
        values = values_in(_question(line["prompt"]))
        questions += 1
        asked += bool(values)
        wanted += len(values)
        said += sum(value.casefold() in answer for value in values)
    return said / wanted if 2 * asked > questions else None


def _question(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
