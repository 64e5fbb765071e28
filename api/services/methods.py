"""The registry of methods as the API shows it."""

import inspect

from api.schemas.catalog import MethodCard
from api.services.bases import find_shape
from core.settings import Settings
from models.nn.methods import METHODS, parse_method


def list_methods(settings: Settings) -> list[MethodCard]:
    """Return a card for every method, by kind."""
    shape = find_shape(settings)
    return [
        MethodCard(
            id=kind,
            type=kind,
            description=inspect.cleandoc(method.__doc__ or ""),
            options=method.model_json_schema(by_alias=True),
            parameters=parse_method({"type": kind}).parameters(shape) if shape else None,
            shares_batch=method.shares_batch,
            learning_rate=method.learning_rate,
        )
        for kind, method in METHODS.items()
    ]
