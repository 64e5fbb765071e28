"""Classifiers on the trunk: pooling, and class scores from what was pooled.

Shapes: T rows, n sequences, d hidden, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.kernels.reference import ACTIVATIONS
from models.nn.terms import HeadTerm, Pooling


def pool(hidden_td: Tensor, lengths: Sequence[int], *, pooling: Pooling) -> Tensor:
    """Return (n, d) float32: of each sequence its last row, or the mean of its rows."""
    pieces = torch.split(hidden_td.float(), list(lengths))
    if pooling == "last":
        return torch.stack([piece_sd[-1] for piece_sd in pieces])
    return torch.stack([piece_sd.mean(0) for piece_sd in pieces])


def class_logits(pooled_nd: Tensor, *, head: HeadTerm) -> Tensor:
    """Return (n, C) float32 from pooled states (n, d) float32."""
    if head.inner_weight is not None:
        inner_nm = F.linear(pooled_nd, head.inner_weight, head.inner_bias)
        pooled_nd = ACTIVATIONS[head.activation](inner_nm)
    return F.linear(pooled_nd, head.weight, head.bias)
