"""Hidden states of a trunk that nothing acts on: computed once, whatever the number of epochs.

Shapes: T rows of a stream, d hidden, n picked rows of a stream, N picked rows of a data set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.forward import Part, forward
from worker.train.data import Examples, Stream, micro_batches

Pick = Callable[[Stream, Tensor], tuple[Tensor, list[int]]]
"""From a stream and its hidden states (T, d): those to keep (n, d), and how many a sequence."""


@dataclass(frozen=True)
class Frozen:
    """States (N, d) of a data set, in the order of its rows."""

    states_nd: Tensor
    bounds: NDArray[np.int64]

    def of(self, rows: Sequence[int]) -> Tensor:
        """Return the states of these rows, one behind the other."""
        return torch.cat([self.states_nd[self.bounds[row] : self.bounds[row + 1]] for row in rows])


@torch.no_grad()
def freeze(
    examples: Examples,
    *,
    backbone: Backbone,
    pick: Pick,
    max_tokens: int,
    check: Callable[[], None],
) -> Frozen:
    """Compute the base's states of a data set.

    The streams depend on the data set alone, so that a run which is resumed gets the same bits.
    """
    pieces: dict[int, Tensor] = {}
    rows = np.arange(len(examples))
    for stream in micro_batches(examples, rows, max_tokens=max_tokens, device=str(backbone.device)):
        check()
        hidden_td = forward(backbone, [Part(stream.ids_t, stream.lengths)]).hidden_td
        picked_nd, counts = pick(stream, hidden_td)
        pieces.update(zip(stream.rows, torch.split(picked_nd, counts), strict=True))
    ordered = [pieces[row] for row in range(len(examples))]
    bounds = np.cumsum([0, *(len(piece) for piece in ordered)])
    return Frozen(torch.cat(ordered), bounds)
