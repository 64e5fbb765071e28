"""What an adapter says at each place, as data: executors apply it, methods never see a row.

Importing this loads no torch, so that method files may. Shapes: i in features, o out features,
r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import lazy_loader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.nn.backbone import Base
    from models.nn.methods.base import Method

    OpenForm = Callable[[Tensor, Tensor], Tensor]
else:
    torch = lazy_loader.load("torch")


@dataclass(frozen=True)
class LinearTerm:
    """One adapter at one linear place `y = W x + b0`; every field may be absent.

    y = output_scale * (W (input_scale * x) + b0 + scale * up down drop(input_scale * x)) + bias

    or, for an algebra without fields of its own, y = function(x, W x + b0), which is correct
    everywhere and fast nowhere.
    """

    down: Tensor | None = None
    """(r, i)"""
    up: Tensor | None = None
    """(o, r)"""
    scale: float = 1.0
    dropout: float = 0.0
    """Probability that a feature of the low-rank input is dropped in training."""
    input_scale: Tensor | None = None
    """(i,)"""
    output_scale: Tensor | None = None
    """(o,)"""
    bias: Tensor | None = None
    """(o,)"""
    function: OpenForm | None = None

    def __post_init__(self) -> None:
        if (self.down is None) != (self.up is None):
            raise ValueError("A low-rank term needs both down and up.")
        if self.function is not None and self._tensors():
            raise ValueError("A term is either an open function or made of tensors, not both.")

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    @property
    def bytes(self) -> int:
        """What the tensors of this term occupy."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, dtype: torch.dtype, device: torch.device | str) -> LinearTerm:
        """Cast every tensor, differentiably."""
        cast: dict[str, Any] = {
            name: tensor.to(device, dtype) for name, tensor in self._tensors().items()
        }
        return replace(self, **cast)


@dataclass(frozen=True)
class Terms:
    """All terms of one adapter over one base."""

    linears: Mapping[str, LinearTerm]

    @classmethod
    def of(
        cls,
        method: Method,
        tensors: Mapping[str, Tensor],
        base: Base,
        *,
        dtype: torch.dtype | None = None,
    ) -> Terms:
        """Ask `method` for its term at every place and cast each once, from float32 to `dtype`.

        Differentiable in `tensors`; `dtype` is the base's unless given.
        """
        asked = ((place, method.linear(tensors, place, base)) for place in base.shape.linears)
        terms = cls(MappingProxyType({place: term for place, term in asked if term is not None}))
        return terms.to(dtype or base.dtype, base.device)

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Terms:
        """Cast every term, differentiably."""
        return Terms(
            MappingProxyType({place: term.to(dtype, device) for place, term in self.items()})
        )

    def items(self) -> Iterator[tuple[str, LinearTerm]]:
        """Go through the linear places that have a term."""
        return iter(self.linears.items())

    @property
    def bytes(self) -> int:
        """What the tensors of these terms occupy."""
        return sum(term.bytes for term in self.linears.values())
