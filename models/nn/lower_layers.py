"""All layers of a flat forward but the last as one op, where that computes all that acts in them.

It does in training where nothing but low-rank updates acts in them, and on no norm, sublayer or
attention of any layer. The last one has rows of its own.
Shapes: T rows of the stream, d hidden, h head dimension.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from models.nn.attention import Attention, PackedCausal
from models.nn.executors import Executor, Segments
from models.nn.joint import Joint
from models.nn.kernels import Heads, Layer, ops
from models.nn.shape import Shape


class LowerLayers:
    """Layers in order, and their products: four of each."""

    def __init__(self, shape: Shape, layers: Sequence[Layer], joints: Sequence[Joint]) -> None:
        self._shape = shape
        self._layers = layers
        self._joints = joints

    def __len__(self) -> int:
        return len(self._layers)

    def compute(
        self,
        x_td: Tensor,
        normed_td: Tensor,
        *,
        angles: tuple[Tensor, Tensor],
        attention: Attention,
        executor: Executor,
    ) -> tuple[Tensor, Tensor] | None:
        """Return the stream (T, d) behind them and its norm, from both before them.

        `angles` are cosines and sines (T, h). None where they are to be computed one by one.
        """
        as_one = ops(x_td.device).layers
        if as_one is None or not self._layers or not torch.is_grad_enabled():
            return None
        if not isinstance(executor, Segments) or not isinstance(attention, PackedCausal):
            return None
        sequences = attention.as_one(len(x_td))
        updates = executor.low_rank(self._joints)
        if sequences is None or updates is None:
            return None
        factors = (matrix for one in chain(*updates) for matrix in (one.down_ri, one.up_or))
        if not any(tensor.requires_grad for tensor in chain((x_td,), factors)):
            return None  # nothing would be gained, but all would be kept
        heads = Heads(self._shape.kv_heads, self._shape.head_dim, angles, *sequences)
        return as_one(x_td, normed_td, layers=self._layers, updates=updates, heads=heads)
