"""Linear places that read one input, such as query, key and value, as one product.

Shapes: i in features, o out features of all places together.
"""

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from models.nn.kernels import Weight


@dataclass(frozen=True, eq=False)
class Joint:
    """Places whose outputs lie side by side, in order."""

    places: tuple[str, ...]
    columns: tuple[tuple[int, int], ...]
    weight: Weight
    apart: tuple["Joint", ...] = field(repr=False)
    """Each place by itself, over the same weights; nothing for a place that is alone."""

    @classmethod
    def of(
        cls, places: tuple[str, ...], weights: list[Tensor], biases: list[Tensor | None]
    ) -> "Joint":
        """Join weights (o, i) and biases (o,), all or none of them there; differentiable."""
        if len(places) == 1:
            return cls(places, ((0, len(weights[0])),), Weight(weights[0], biases[0]), ())
        weight_oi, bias_o = torch.cat(weights), None
        given = [bias for bias in biases if bias is not None]
        if given:
            bias_o = torch.cat(given)
        columns = tuple(pairwise(accumulate((len(weight) for weight in weights), initial=0)))
        apart = tuple(
            cls(
                (place,),
                ((0, stop - start),),
                Weight(weight_oi[start:stop], None if bias_o is None else bias_o[start:stop]),
                (),
            )
            for place, (start, stop) in zip(places, columns, strict=True)
        )
        return cls(places, columns, Weight(weight_oi, bias_o), apart)

    @property
    def each(self) -> tuple["Joint", ...]:
        """Every place by itself."""
        return self.apart or (self,)
