"""The registry: every file in this folder is a method, by being here.

Importing it loads no torch: method files get it through `lazy_loader`, so that the api can
validate and describe methods.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from core.errors import InvalidRequest
from models.nn.methods.base import Method

_PARAM = "peft"
SHOWN_REASONS = 5


def _discover() -> dict[str, type[Method]]:
    """Import the files beside this one and return their method classes by kind."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    classes: dict[str, type[Method]] = {}
    for found in _below(Method):
        if "kind" in found.__annotations__:  # of its own: one that is shared names no method
            kind = found.model_fields["kind"].default
            if classes.get(kind, found) is not found:
                raise TypeError(f"Two methods have the kind {kind!r}.")
            classes[kind] = found
    return dict(sorted(classes.items()))


def _below(parent: type[Method]) -> Iterator[type[Method]]:
    """Go through all classes that derive from one, also those that others derive from."""
    for child in parent.__subclasses__():
        yield child
        yield from _below(child)


METHODS: dict[str, type[Method]] = _discover()

if TYPE_CHECKING:
    AnyMethod = Method
else:
    _union = METHODS[next(iter(METHODS))]
    for _class in METHODS.values():
        _union |= _class
    AnyMethod = Annotated[_union, Field(discriminator="kind")]


def parse_method(block: Mapping[str, Any]) -> Method:
    """Return the method that a `peft` block describes, every value resolved.

    Raises `InvalidRequest` that names the unknown kind or key, or the bad value, by `param`.
    """
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in METHODS:
        wrong = f"Unknown method {kind!r}; `type`" if "type" in block else "`type` is missing; it"
        raise InvalidRequest(
            f"{wrong} must be one of {', '.join(METHODS)}.",
            code="unknown_method",
            param=f"{_PARAM}.type",
        )
    try:
        return METHODS[kind].model_validate(dict(block))
    except ValidationError as error:
        raise explain(error, METHODS[kind]) from error


def parse_posted(block: Mapping[str, Any]) -> Method:
    """Return the method that a user describes; as `parse_method`, less what only data decide."""
    method = parse_method(block)
    for name in method.model_fields_set & decided_fields(type(method)):
        if getattr(method, name):
            raise InvalidRequest(
                f"{name!r} is filled in by the job, from its training file; leave it out.",
                code="invalid_value",
                param=f"{_PARAM}.{name}",
            )
    return method


def decided_fields(method: type[Method]) -> set[str]:
    """Return the fields that a job fills in from its data and nobody may give: `readOnly` ones."""
    return {
        name
        for name, field in method.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("readOnly")
    }


def explain(error: ValidationError, method: type[Method]) -> InvalidRequest:
    """Turn pydantic's first complaint into our error; an unknown key goes before a bad value."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = str(problems[0]["loc"][0]) if problems[0]["loc"] else "type"
    param = f"{_PARAM}.{key}"
    if problems[0]["type"] == "extra_forbidden":
        allowed = sorted(field.alias or name for name, field in method.model_fields.items())
        return InvalidRequest(
            f"Unknown parameter {key!r}; allowed are {', '.join(allowed)}.",
            code="unknown_parameter",
            param=param,
        )
    alike = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    said = dict.fromkeys(problem["msg"].removeprefix("Value error, ") for problem in alike)
    reasons = "; or ".join(islice(said, SHOWN_REASONS))
    return InvalidRequest(
        f"Invalid value for {param}: {reasons}.", code="invalid_value", param=param
    )
