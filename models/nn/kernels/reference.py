"""The plain-torch meaning of every op: the specification of fused forms, and what a CPU runs.

Shapes: t rows, i in features, o out features, r rank (or the sum of ranks), n vectors of a table,
d hidden, m bottleneck (or the sum of bottlenecks), H query heads, K key heads, G query heads that
share a key head, h head dimension, p keys (or the sum of keys).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.terms import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def low_rank(
    y_to: Tensor, x_ti: Tensor, *, down_ri: Tensor, up_or: Tensor, weight: Tensor | float
) -> Tensor:
    """Return `y + ((x @ downT) * weight) @ upT`, of y's shape and dtype, with gradients.

    `weight` is the scale of one adapter, or (t, r): the scale where a row owns a column, else 0.
    Tensors have one dtype, but the mask is float32, so that scales are applied unrounded. Source:
    LoRA, arXiv 2106.09685 section 4.1; the masked form joins the updates of several adapters in
    two products.
    """
    inner_tr = (F.linear(x_ti, down_ri) * weight).to(x_ti.dtype)
    return y_to + F.linear(inner_tr, up_or)


def bottleneck(
    y_td: Tensor,
    z_td: Tensor,
    *,
    down_md: Tensor,
    down_bias_m: Tensor,
    activation: Activation,
    up_dm: Tensor,
    weight: Tensor | float,
) -> Tensor:
    """Return `y + (act(z @ downT + down_bias) * weight) @ upT`, of y's shape and dtype.

    `weight` is as in `low_rank`: the mask comes after the nonlinearity, which need not keep zeros.
    Source: adapter modules, arXiv 1902.00751 section 2.1.
    """
    inner_tm = ACTIVATIONS[activation](F.linear(z_td, down_md, down_bias_m))
    return y_td + F.linear((inner_tm * weight).to(z_td.dtype), up_dm)


def gated_attention(
    output_thh: Tensor,
    query_hth: Tensor,
    *,
    keys_kph: Tensor,
    values_kph: Tensor,
    gate: Tensor,
    scale: float,
    visible_tp: Tensor | None = None,
) -> Tensor:
    """Return `output + gate * softmax(scale * query keysT) values`, (t, H, h).

    `gate` is (H,) or (t, H); a row sees the keys that `visible` (bool) says, at least one, or all.
    Source: LLaMA-Adapter, arXiv 2303.16199 section 3.2; grouped heads share their key head.
    """
    query_kgth = query_hth.view(keys_kph.shape[0], -1, *query_hth.shape[1:])
    scores_kgtp = query_kgth @ keys_kph[:, None].transpose(-1, -2) * scale
    if visible_tp is not None:
        scores_kgtp = scores_kgtp.masked_fill(~visible_tp, float("-inf"))
    weights_kgtp = scores_kgtp.softmax(-1, dtype=torch.float32).to(values_kph.dtype)
    added_thh = (weights_kgtp @ values_kph[:, None]).flatten(0, 1).transpose(0, 1)
    result_thh: Tensor = output_thh + gate[..., None] * added_thh
    return result_thh


def row_scale(x_ti: Tensor, *, table_ni: Tensor, rows_t: Tensor) -> Tensor:
    """Multiply row t of x by row `rows[t]` (int64) of the table; shape and dtype of x."""
    return x_ti * table_ni[rows_t]


def row_shift(x_ti: Tensor, *, table_ni: Tensor, rows_t: Tensor) -> Tensor:
    """Add to row t of x row `rows[t]` (int64) of the table; shape and dtype of x."""
    return x_ti + table_ni[rows_t]
