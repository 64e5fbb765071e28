"""The parameters of a network by place, some of them perhaps replaced by others.

Shapes: d hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.quantized import is_packed
from models.nn.shape import BODY_PREFIX, HEAD, Shape, path_of
from models.nn.weight_only import scales_of

_EMBEDDING = f"{BODY_PREFIX}embed_tokens.weight"

Order = Callable[[Sequence[Tensor]], Tensor]
"""How the outputs of places lie in one matrix."""


@dataclass(frozen=True)
class Reader:
    """Reads what was the network's when it was made, whatever another thread puts into it since."""

    shape: Shape
    _parameters: Mapping[str, Tensor]
    """By their names in the network; a tied head has its own beside the embedding's."""

    @classmethod
    def of(cls, backbone: Backbone) -> "Reader":
        """Read a network as it is."""
        return cls(backbone.shape, dict(backbone.network.named_parameters(remove_duplicate=False)))

    def over(self, weights: Mapping[str, Tensor]) -> "Reader":
        """Read the same network with other parameters in place of some."""
        if self.shape.tied and _EMBEDDING in weights:
            weights = {**weights, f"{HEAD}.weight": weights[_EMBEDDING]}
        return replace(self, _parameters={**self._parameters, **weights})

    def changes(self, place: str, weights: Mapping[str, Tensor]) -> bool:
        """Say whether weights are in place of any parameter at or below a place."""
        below = _EMBEDDING if place == HEAD and self.shape.tied else f"{path_of(place)}."
        return any(name.startswith(below) for name in weights)

    def embedding(self) -> Tensor:
        """Return (V, d)."""
        return self._parameters[_EMBEDDING].detach()

    def gain(self, place: str) -> Tensor:
        """Return the (d,) gain of a norm."""
        return self._parameters[f"{path_of(place)}.weight"].detach()

    def joined(self, places: Sequence[str], *, order: Order) -> tuple[Tensor, Tensor | None]:
        """Return the weights of places as one, and the scales of its outputs if it is in 8 bits."""
        weights = [self._parameters[f"{path_of(place)}.weight"] for place in places]
        joined = order([weight.detach() for weight in weights])
        scales = [scales_of(weight) for weight in weights if is_packed(weight)]
        return joined, order(scales) if scales else None

    def biases(self, places: Sequence[str], *, order: Order) -> Tensor | None:
        """Return the biases of places that are joined, zeros where one has none, or None."""
        found = [self._parameters.get(f"{path_of(place)}.bias") for place in places]
        if all(bias is None for bias in found):
            return None
        sides = [
            torch.zeros(self.shape.linears[place][0]) if bias is None else bias.detach().float()
            for place, bias in zip(places, found, strict=True)
        ]
        return order(sides)
