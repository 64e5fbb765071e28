"""JSON values of one kind that pydantic would read as another: text, truth or a number."""

from typing import Any


def misread(given: Any, *, value: Any) -> str | None:
    """Say what to give where text, truth or a number, alone or in a list, was read as another."""
    lost = _kinds(given) & {bool, str, int, float}
    if not lost:
        return None
    read = _kinds(value)
    lost -= read
    if bool in read and lost:
        return f"give true or false, not {'text' if str in lost else 'a number'}"
    if str in lost:
        return "give a number, not text"
    return "give a number, not true or false" if bool in lost else None


def _kinds(value: Any) -> set[type]:
    """Return the type of a value, or those of what is in a list."""
    if not isinstance(value, list | tuple):
        return {type(value)}
    kinds = set(map(type, value))
    if list in kinds:
        kinds = kinds.union(*(_kinds(item) for item in value if isinstance(item, list)))
    return kinds
