"""The plain-torch meaning of every op: the specification of fused forms, and what a CPU runs.

Shapes: t rows, i in features, o out features, r rank (or the sum of ranks), n vectors of a table.
"""

import torch.nn.functional as F
from torch import Tensor


def low_rank(
    y_to: Tensor, x_ti: Tensor, *, down_ri: Tensor, up_or: Tensor, weight: Tensor | float
) -> Tensor:
    """Return `y + ((x @ downT) * weight) @ upT`, of y's shape and dtype, with gradients.

    `weight` is the scale of one adapter, or (t, r): the scale where a row owns a column, else 0.
    All tensors have one dtype. Source: LoRA, arXiv 2106.09685 section 4.1; the masked form joins
    the updates of several adapters in two products.
    """
    return y_to + F.linear(F.linear(x_ti, down_ri) * weight, up_or)


def row_scale(x_ti: Tensor, *, table_ni: Tensor, rows_t: Tensor) -> Tensor:
    """Multiply row t of x by row `rows[t]` (int64) of the table; shape and dtype of x."""
    return x_ti * table_ni[rows_t]


def row_shift(x_ti: Tensor, *, table_ni: Tensor, rows_t: Tensor) -> Tensor:
    """Add to row t of x row `rows[t]` (int64) of the table; shape and dtype of x."""
    return x_ti + table_ni[rows_t]
