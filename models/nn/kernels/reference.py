"""The plain-torch meaning of every op: the specification, and the form where no other is better.

Shapes: t rows, i in features, o out features, r rank (or the sum of ranks), n vectors of a table
or rows with a target, d hidden, m bottleneck (or the sum of bottlenecks) or inner width, H query
heads, K key heads, G heads side by side (H query, K key, K value), g query heads that share a key
head, h head dimension, p keys (or the sum of keys), v vocabulary.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.kernels.table import Shift, Update, Weight
from models.nn.terms import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def project(x_ti: Tensor, *, weight: Weight, updates: Sequence[Update] = ()) -> Tensor:
    """Return (t, o): `x @ WT + b`, and in each update's rows and columns its low-rank product.

    The product is `scale * drop(x) @ downT @ upT`, in x's dtype, as are all tensors. Updates do
    not overlap. Source: LoRA, arXiv 2106.09685 section 4.1; several linear layers that read one
    input are one layer whose outputs lie side by side.
    """
    y_to = F.linear(x_ti, weight.weight_oi, weight.bias_o)
    pieces = torch.zeros_like(y_to)
    for update in updates:
        rows, columns = slice(*update.rows), slice(*update.columns)
        own_ti = x_ti[rows] if update.keep_ti is None else x_ti[rows] * update.keep_ti
        inner_tr = (F.linear(own_ti, update.down_ri) * update.scale).to(x_ti.dtype)
        pieces = pieces.clone()
        pieces[rows, columns] = F.linear(inner_tr, update.up_or)
    return y_to + pieces


def scale_shift(y_to: Tensor, *, shifts: Sequence[Shift]) -> Tensor:
    """Return `scale * y + shift` in each one's rows and columns, y elsewhere; y's shape and dtype.

    Pieces do not overlap. Sources: IA3, arXiv 2205.05638 section 3.3; DoRA, arXiv 2402.09353
    section 4.1, where the scale is magnitude over norm.
    """
    scale_to, shift_to = torch.ones_like(y_to), torch.zeros_like(y_to)
    for piece in shifts:
        rows, columns = slice(*piece.rows), slice(*piece.columns)
        if piece.scale_o is not None:
            scale_to = scale_to.clone()
            scale_to[rows, columns] = piece.scale_o.to(y_to)
        if piece.shift_o is not None:
            shift_to = shift_to.clone()
            shift_to[rows, columns] = piece.shift_o.to(y_to)
    return y_to * scale_to + shift_to


def rms_norm(x_td: Tensor, *, gain: Tensor, epsilon: float) -> Tensor:
    """Return `x / rms(x) * gain`, of x's shape and dtype; the mean square is taken in float32.

    `gain` is (d,) or (t, d), in x's dtype or float32. Source: arXiv 1910.07467, equation 4; the
    order of roundings is Llama's.
    """
    x32_td = x_td.float()
    square_t1 = x32_td.pow(2).mean(-1, keepdim=True)
    square_t1 = square_t1 + (square_t1 - square_t1)  # of an infinity NaN, where 1 / root hides it
    normed_td = x32_td * torch.rsqrt(square_t1 + epsilon)
    return normed_td.to(x_td.dtype) * gain.to(x_td.dtype)


def add_rms_norm(
    x_td: Tensor, y_td: Tensor, *, gain: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return `rms_norm(x + y)` and `x + y`, the residual stream that goes on."""
    sum_td = x_td + y_td
    return rms_norm(sum_td, gain=gain, epsilon=epsilon), sum_td


def rotate(heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int) -> Tensor:
    """Return (t, G, h) with the first `rotated` heads turned by their row's angles.

    Cosines and sines (t, h) hold each angle twice, h / 2 apart, in the heads' dtype and without
    gradients. Source: rotary embeddings, arXiv 2104.09864 section 3.4.2, in the order of Llama.
    """
    turned, kept = heads_tgh[:, :rotated], heads_tgh[:, rotated:]
    first, second = turned.chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    return torch.cat([turned * cos_th[:, None] + crossed * sin_th[:, None], kept], dim=1)


def swiglu(gate_up_tm: Tensor) -> Tensor:
    """Return (t, m) `silu(gate) * up` from (t, 2 m): gates, then ups (arXiv 2002.05202)."""
    gate_tm, up_tm = gate_up_tm.chunk(2, dim=-1)
    return F.silu(gate_tm) * up_tm


def attend_packed(
    heads_tgh: Tensor,
    *,
    kv_heads: int,
    bounds: Sequence[int],
    scale: float,
    parents: Sequence[int] = (),
) -> Tensor:
    """Return (t, H, h): causal attention within each sequence, from (t, G, h) rotated heads.

    `bounds` are the sequences' ends, from 0 to t. A sequence with a parent, an earlier one, goes on
    from it: it sees all rows of it and all that it sees. Parents are -1 for none; no parents at all
    are none for each. Source: arXiv 1706.03762 section 3.2.1; grouped heads share a key head, arXiv
    2305.13245; a tree of sequences, arXiv 2305.09781 section 4.
    """
    heads = heads_tgh.shape[1] - 2 * kv_heads
    query_hth, key_kth, value_kth = torch.split(
        heads_tgh.transpose(0, 1), [heads, kv_heads, kv_heads]
    )
    seen: list[list[int]] = []
    outputs = []
    for one, (start, stop) in enumerate(pairwise(bounds)):
        parent = parents[one] if parents else -1
        before = [] if parent < 0 else seen[parent]
        seen.append(before + list(range(start, stop)))
        query_kgth = torch.unflatten(query_hth[:, start:stop], 0, (kv_heads, -1))
        scores_kgtp = query_kgth @ key_kth[:, None, seen[-1]].transpose(-1, -2) * scale
        future_tp = torch.ones(scores_kgtp.shape[-2:], dtype=torch.bool, device=heads_tgh.device)
        scores_kgtp = scores_kgtp.masked_fill(future_tp.triu(1 + len(before)), float("-inf"))
        weights_kgtp = scores_kgtp.softmax(-1, dtype=torch.float32).to(value_kth.dtype)
        output_kgth = weights_kgtp @ value_kth[:, None, seen[-1]]
        outputs.append(output_kgth.flatten(0, 1).transpose(0, 1))
    return torch.cat(outputs)


def linear_cross_entropy(
    hidden_nd: Tensor, *, weight: Weight, targets_n: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each row's cross-entropy (n,) float32, and whether its target is the argmax (n,) bool.

    Logits are `hidden @ WT` in hidden's dtype; targets are int64. The gradient with respect to a
    row is `(softmax - onehot) @ W`, times that of its loss; averaging is the caller's, in float32
    and last: 1 / n folded into a bfloat16 softmax would bias it.
    """
    logits_nv = F.linear(hidden_nd, weight.weight_oi, weight.bias_o)
    losses_n = F.cross_entropy(logits_nv.float(), targets_n, reduction="none")
    return losses_n, logits_nv.detach().argmax(-1) == targets_n


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
    query_kgth = torch.unflatten(query_hth, 0, (keys_kph.shape[0], -1))
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
