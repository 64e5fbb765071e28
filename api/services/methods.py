"""The registry of methods as the API shows it."""

import inspect

from api.schemas.catalog import MethodCard
from api.services.bases import find_shape
from core.errors import InvalidRequest
from core.settings import Settings
from models.nn.methods import METHODS, parse_method
from models.nn.methods.base import Method
from models.nn.shape import Shape


def list_methods(settings: Settings) -> list[MethodCard]:
    """Return a card for every method, by kind."""
    shape = find_shape(settings)
    return [_card(kind, method, shape=shape) for kind, method in METHODS.items()]


def _card(kind: str, method: type[Method], *, shape: Shape | None) -> MethodCard:
    defaults = parse_method({"type": kind})
    return MethodCard(
        id=kind,
        type=kind,
        description=inspect.cleandoc(method.__doc__ or ""),
        options=method.model_json_schema(by_alias=True),
        parameters=_parameters(defaults, shape) if shape else None,
        objective="generation" if defaults.class_labels is None else "classification",
        shares_batch=method.shares_batch,
        starts_as_base=defaults.starts_as_base,
        peft_type=method.peft_type,
        learning_rate=method.learning_rate,
    )


def _parameters(method: Method, shape: Shape) -> int | None:
    """Return how many numbers are trained; None where the defaults do not fit or say it yet."""
    try:
        return method.parameters(shape)
    except InvalidRequest:
        return None
