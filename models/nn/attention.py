"""Attention over flat streams: who may look at whom is decided here, not in the backbone.

Shapes: T rows of the stream, H query heads, K key and value heads, h head dimension, n rows of
one sequence, g query heads that share a key head.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    """What the backbone calls for the core attention of every layer."""

    def attend(
        self,
        layer: int,
        query_hth: Tensor,
        key_kth: Tensor,
        value_kth: Tensor,
        /,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Return (T, H, h) from query (H, T, h) and key and value (K, T, h), already rotated.

        `window` is how many positions a row sees, itself included; `softcap` bounds the scores
        by `cap * tanh(score / cap)`.
        """


class PackedCausal:
    """Block-diagonal causal attention over sequences laid end to end; differentiable, no cache."""

    def __init__(self, sequences: Sequence[tuple[int, int]]) -> None:
        """Take (start, stop) of each sequence; together they must tile the stream."""
        bounds = [(0, 0), *sequences]
        if any(before[1] != after[0] for before, after in pairwise(bounds)):
            raise ValueError("Sequences must follow each other without gap or overlap.")
        if any(start >= stop for start, stop in sequences):
            raise ValueError("A sequence must have at least one row.")
        self.sequences = tuple(sequences)
        self._masks: dict[tuple[int, int | None, torch.device], Tensor] = {}

    def attend(
        self,
        layer: int,  # noqa: ARG002 - without a cache every layer is alike
        query_hth: Tensor,
        key_kth: Tensor,
        value_kth: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `Attention.attend`; raises ValueError where the sequences do not fill the rows."""
        if query_hth.shape[1] != self.sequences[-1][1]:
            raise ValueError(f"{query_hth.shape[1]} rows, but {self.sequences[-1][1]} in sequences")
        outputs = []
        for start, stop in self.sequences:
            rows = (query_hth[:, start:stop], key_kth[:, start:stop], value_kth[:, start:stop])
            mask_nn = None
            if softcap is not None or (window is not None and window < stop - start):
                mask_nn = self._mask(stop - start, window, query_hth.device)
            if softcap is None:
                outputs.append(_attend_plain(*rows, scale=scale, mask_nn=mask_nn))
            else:
                outputs.append(_attend_capped(*rows, scale=scale, mask_nn=mask_nn, cap=softcap))
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _mask(self, length: int, window: int | None, device: torch.device) -> Tensor:
        """Return (n, n) bool, true where row may see column; built once per length."""
        key = (length, window, device)
        if key not in self._masks:
            self._masks[key] = causal_mask(
                torch.arange(length, device=device),
                torch.arange(length, device=device),
                window=window,
            )
        return self._masks[key]


def causal_mask(query_t: Tensor, key_s: Tensor, *, window: int | None) -> Tensor:
    """Return (t, s) bool from two vectors of positions: no future, and nothing beyond a window."""
    distance_ts = query_t[:, None] - key_s[None, :]
    visible_ts = distance_ts >= 0
    return visible_ts if window is None else visible_ts & (distance_ts < window)


def _attend_plain(
    query_hnh: Tensor, key_knh: Tensor, value_knh: Tensor, *, scale: float, mask_nn: Tensor | None
) -> Tensor:
    """Return (H, n, h); grouped heads read their key head in place, without a copy."""
    return F.scaled_dot_product_attention(
        query_hnh[None],
        key_knh[None],
        value_knh[None],
        attn_mask=mask_nn,
        is_causal=mask_nn is None,
        scale=scale,
        enable_gqa=query_hnh.shape[0] != key_knh.shape[0],
    )[0]


def _attend_capped(
    query_hnh: Tensor,
    key_knh: Tensor,
    value_knh: Tensor,
    *,
    scale: float,
    mask_nn: Tensor | None,
    cap: float,
) -> Tensor:
    """Return (H, n, h) with bounded scores (Gemma 2, arXiv 2408.00118 section 2)."""
    query_kgnh = query_hnh.view(key_knh.shape[0], -1, *query_hnh.shape[1:])
    scores_kgnn = query_kgnh @ key_knh[:, None].transpose(-1, -2) * scale
    scores_kgnn = cap * torch.tanh(scores_kgnn / cap)
    if mask_nn is not None:
        scores_kgnn = scores_kgnn.masked_fill(~mask_nn, float("-inf"))
    weights_kgnn = scores_kgnn.softmax(-1, dtype=torch.float32).to(value_knh.dtype)
    return (weights_kgnn @ value_knh[:, None]).flatten(0, 1)
