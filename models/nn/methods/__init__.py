"""The registry: every file in this folder is a method, by being here.

Importing it loads no torch: method files get it through `lazy_loader`, so that the api can
validate and describe methods.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from core.errors import InvalidRequest
from models.nn.methods.base import Method

_PARAM = "peft"


def _discover() -> dict[str, type[Method]]:
    """Import the files beside this one and return their method classes by kind."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    classes = {found.model_fields["kind"].default: found for found in _leaves(Method)}
    return dict(sorted(classes.items()))


def _leaves(parent: type[Method]) -> list[type[Method]]:
    children = parent.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [parent]


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
        raise InvalidRequest(
            f"Unknown method {kind!r}; `type` must be one of {', '.join(METHODS)}.",
            code="unknown_method",
            param=f"{_PARAM}.type",
        )
    try:
        return METHODS[kind].model_validate(dict(block))
    except ValidationError as error:
        raise _explain(error, METHODS[kind]) from error


def parse_posted(block: Mapping[str, Any]) -> Method:
    """Return the method that a user describes; as `parse_method`, less what only data decide."""
    method = parse_method(block)
    for name in method.model_fields_set:
        extra = type(method).model_fields[name].json_schema_extra
        if isinstance(extra, dict) and extra.get("readOnly") and getattr(method, name):
            raise InvalidRequest(
                f"{name!r} is filled in by the job, from its training file; leave it out.",
                code="invalid_value",
                param=f"{_PARAM}.{name}",
            )
    return method


def _explain(error: ValidationError, method: type[Method]) -> InvalidRequest:
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
    reasons = "; or ".join(p["msg"] for p in problems if p["loc"][:1] == problems[0]["loc"][:1])
    return InvalidRequest(
        f"Invalid value for {param}: {reasons}.", code="invalid_value", param=param
    )
