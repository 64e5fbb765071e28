"""Hidden states of a trunk that nothing acts on: computed once, whatever the number of epochs.

Shapes: T rows of a stream, d hidden, n picked rows of a stream, N picked rows of a data set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.forward import Part, forward
from worker.train.data import Examples, Stream, micro_batches
from worker.train.turns import Alone, Turn

Pick = Callable[[Stream, Tensor], tuple[Tensor, list[int]]]
"""From a stream and its hidden states (T, d): those to keep (n, d), and how many a sequence."""


@dataclass(frozen=True)
class Frozen:
    """States (n, d) of some rows of a data set, by row."""

    states: Mapping[int, Tensor]

    def of(self, rows: Sequence[int]) -> Tensor:
        """Return the states of these rows, one behind the other."""
        return torch.cat([self.states[row] for row in rows])


def freeze(
    examples: Examples,
    rows: NDArray[np.int64],
    *,
    backbone: Backbone,
    pick: Pick,
    max_tokens: int,
) -> Alone[Frozen]:
    """Compute the base's states of these rows, stream by stream.

    The streams depend on the rows alone, so that a run which is resumed gets the same bits.
    """
    pieces: dict[int, Tensor] = {}
    for stream in micro_batches(examples, rows, max_tokens=max_tokens, device=str(backbone.device)):
        yield Turn(stream.tokens)
        with torch.no_grad():
            part = Part(stream.ids_t, stream.lengths, tree=stream.tree)
            hidden_td = forward(backbone, [part]).hidden_td
            picked_nd, counts = pick(stream, hidden_td)
        pieces.update(zip(stream.rows, torch.split(picked_nd, counts), strict=True))
    return Frozen(pieces)
