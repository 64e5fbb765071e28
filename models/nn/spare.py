"""Terms as views of memory that holds more than they are: how much of it they would keep alive."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from models.nn.terms import Term, Terms

WASTE = 2
"""How many times its own size a set of views may keep alive before it is copied."""


def without_spare(terms: Terms, *, kept: Iterable[Tensor] = ()) -> Terms:
    """Return terms that let go of memory of which they are a small part, like a file's few gains.

    What is `kept` beside them stays as it is, and so does the memory that it lies in.
    """
    used = _used([*terms.tensors(), *kept])

    def own(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        is_small = WASTE * used[storage.data_ptr()] < storage.nbytes()
        return tensor.clone() if is_small else tensor

    return _changed(terms, own)


def _used(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return, by where a storage begins, the bytes of it that some tensors are, each once."""
    found: dict[int, dict[int, int]] = {}
    for tensor in tensors:
        inside = found.setdefault(tensor.untyped_storage().data_ptr(), {})
        inside[tensor.data_ptr()] = max(inside.get(tensor.data_ptr(), 0), tensor.nbytes)
    return {start: sum(inside.values()) for start, inside in found.items()}


def _changed(terms: Terms, change: Callable[[Tensor], Tensor]) -> Terms:
    """Return terms with every tensor changed."""

    def each(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: each(one) for key, one in value.items()}
        if isinstance(value, Term):
            return value.filled(map(change, value.tensors()))
        return change(value) if isinstance(value, Tensor) else value

    return replace(terms, **{one.name: each(getattr(terms, one.name)) for one in fields(terms)})
