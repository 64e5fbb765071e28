"""Block-diagonal attention by batched products: short sequences of about one length together.

A sequence is padded to a length that depends on nothing but its own, so that its bits do not
depend on its neighbours. Padding comes last, where causal rows never look, and gets no gradient.
Shapes: t rows, s sequences, n padded rows of a sequence, H query heads, K key heads, g query heads
that share a key head, G = H + 2 K heads side by side, h head dimension.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_STEP = 32
LONGEST = 256
"""Longer ones are computed alone: their scores would be too many to keep."""


def attend_packed(
    heads_tgh: Tensor, *, kv_heads: int, bounds: Sequence[int], scale: float
) -> Tensor:
    """See `reference.attend_packed`."""
    outputs = []
    for is_long, run in groupby(pairwise(bounds), lambda pair: pair[1] - pair[0] > LONGEST):
        spans = list(run)
        if is_long:
            outputs += [
                _attend_alone(heads_tgh[start:stop], kv_heads, scale) for start, stop in spans
            ]
            continue
        first = spans[0][0]
        inner = (0, *(stop - first for _, stop in spans))
        own_tgh = heads_tgh[first : spans[-1][1]]
        outputs.append(_Attend.apply(own_tgh, kv_heads, inner, scale))  # type: ignore[no-untyped-call]  # torch has no types here
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_alone(heads_ngh: Tensor, kv_heads: int, scale: float) -> Tensor:
    heads = heads_ngh.shape[1] - 2 * kv_heads
    query_hnh, key_knh, value_knh = torch.split(
        heads_ngh.transpose(0, 1)[None], [heads, kv_heads, kv_heads], dim=1
    )
    shared = heads != kv_heads
    output_hnh = F.scaled_dot_product_attention(
        query_hnh, key_knh, value_knh, is_causal=True, scale=scale, enable_gqa=shared
    )
    return output_hnh[0].transpose(0, 1)


class _Group(NamedTuple):
    """Sequences of one padded length: their rows, and where those lie once padded."""

    length: int
    rows_sn: Tensor
    """(s, n) int64; a padding reads some row of the stream"""
    own_r: Tensor
    """(r,) int64: which of the s * n are rows"""
    stream_r: Tensor
    """(r,) int64: those rows in the stream"""


@lru_cache(maxsize=8)
def _groups(bounds: tuple[int, ...], device: torch.device) -> list[_Group]:
    by_length: dict[int, list[tuple[int, int]]] = {}
    for start, stop in pairwise(bounds):
        padded = -(-(stop - start) // LENGTH_STEP) * LENGTH_STEP
        by_length.setdefault(padded, []).append((start, stop))
    groups = []
    for length, spans in by_length.items():
        starts_s1 = torch.tensor([[start] for start, _ in spans])
        sizes_s1 = torch.tensor([[stop - start] for start, stop in spans])
        steps_n = torch.arange(length)
        rows_sn = starts_s1 + torch.minimum(steps_n, sizes_s1 - 1)
        own_r = (steps_n < sizes_s1).flatten().nonzero()[:, 0]
        stream_r = rows_sn.flatten()[own_r]
        groups.append(_Group(length, *(t.to(device) for t in (rows_sn, own_r, stream_r))))
    return groups


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads_tgh: Tensor, kv_heads: int, bounds: tuple[int, ...], scale: float
    ) -> Tensor:
        ctx.kv_heads, ctx.scale = kv_heads, scale
        ctx.groups = _groups(bounds, heads_tgh.device)
        heads = heads_tgh.shape[1] - 2 * kv_heads
        output_thh = heads_tgh.new_empty(len(heads_tgh), heads, heads_tgh.shape[2])
        kept = []
        for group in ctx.groups:
            query, key, value = _sides(heads_tgh[group.rows_sn], kv_heads)
            weights = _weights(query @ key.transpose(-1, -2), group.length, scale)
            padded_rhh = _rows(weights @ value, group.length)
            output_thh[group.stream_r] = padded_rhh[group.own_r]
            kept.append(weights)
        ctx.save_for_backward(heads_tgh, *kept)
        return output_thh

    @staticmethod
    def backward(ctx: Any, grad_thh: Tensor) -> tuple[Tensor, None, None, None]:
        heads_tgh, *kept = ctx.saved_tensors
        grad_tgh = torch.empty_like(heads_tgh)
        for group, weights in zip(ctx.groups, kept, strict=True):
            padded_rhh = grad_thh.new_zeros(group.rows_sn.numel(), *grad_thh.shape[1:])
            padded_rhh[group.own_r] = grad_thh[group.stream_r]
            grad = _grouped(torch.unflatten(padded_rhh, 0, (-1, group.length)), ctx.kv_heads)
            query, key, value = _sides(heads_tgh[group.rows_sn], ctx.kv_heads)
            grad_scores = (grad @ value.transpose(-1, -2)).float()
            weights32 = weights.float()
            grad_scores -= (grad_scores * weights32).sum(-1, keepdim=True)
            grad_scores = grad_scores.mul_(weights32).mul_(ctx.scale).to(weights.dtype)
            sides = (
                _rows(grad_scores @ key, group.length),
                _rows(grad_scores.transpose(-1, -2) @ query, group.length),
                _rows(weights.transpose(-1, -2) @ grad, group.length),
            )
            grad_tgh[group.stream_r] = torch.cat(sides, dim=1)[group.own_r]
        return grad_tgh, None, None, None


def _sides(heads_sngh: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query (s, K, g n, h), key and value (s, K, n, h): what shares a key is one product."""
    heads = heads_sngh.shape[2] - 2 * kv_heads
    query, key, value = torch.split(heads_sngh, [heads, kv_heads, kv_heads], dim=2)
    return _grouped(query, kv_heads), key.transpose(1, 2), value.transpose(1, 2)


def _grouped(heads_snhh: Tensor, kv_heads: int) -> Tensor:
    """Return (s, K, g n, h) from (s, n, H, h)."""
    return torch.unflatten(heads_snhh, 2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _rows(heads_skah: Tensor, length: int) -> Tensor:
    """Return (s n, H, h) from (s, K, g n, h)."""
    split = torch.unflatten(heads_skah, 2, (-1, length))
    return split.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


def _weights(scores_skan: Tensor, length: int, scale: float) -> Tensor:
    """Return the causal softmax (s, K, g n, n) in the dtype of the scores."""
    future_nn = scores_skan.new_ones(length, length, dtype=torch.bool).triu_(1)
    scores_skgnn = torch.unflatten(scores_skan, 2, (-1, length)).float().mul_(scale)
    scores_skgnn.masked_fill_(future_nn, float("-inf"))
    return scores_skgnn.softmax(-1).to(scores_skan.dtype).flatten(2, 3)
