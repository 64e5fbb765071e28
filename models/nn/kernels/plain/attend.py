"""Attention within sequences by batched products: short ones of about one length together.

A sequence is padded to a length that depends on nothing but its own, and what stands before it
likewise, so that its bits do not depend on its neighbours. Padding is never seen and gets no
gradient.
Shapes: t rows, s sequences, n padded rows of a sequence, m padded keys that it sees, H query
heads, K key heads, g query heads that share a key head, G = H + 2 K heads side by side, h head
dimension.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.autograd import apply
from models.nn.lineage import NONE, lineage

LENGTH_STEP = 32
LONGEST = 256
"""Keys: with more, a sequence is computed alone; its scores would be too many to keep."""


def attend_packed(
    heads_tgh: Tensor,
    *,
    kv_heads: int,
    bounds: Sequence[int],
    scale: float,
    parents: Sequence[int] = (),
) -> Tensor:
    """See `reference.attend_packed`."""
    sequences = _find_sequences(tuple(bounds), tuple(parents))
    output_thh: Tensor = apply(_Attend, heads_tgh, kv_heads, sequences, scale)
    if not any(sequence.is_long for sequence in sequences):
        return output_thh
    pieces = [
        _attend_alone(heads_tgh, sequence, kv_heads=kv_heads, scale=scale)
        if sequence.is_long
        else output_thh[sequence.start : sequence.stop]
        for sequence in sequences
    ]
    return torch.cat(pieces)


class _Sequence(NamedTuple):
    """Rows [start, stop) and the rows that stand before them, which all of them see."""

    start: int
    stop: int
    before: tuple[int, ...]

    @property
    def is_long(self) -> bool:
        return self.stop - self.start + len(self.before) > LONGEST


@lru_cache(maxsize=8)
def _find_sequences(bounds: tuple[int, ...], parents: tuple[int, ...]) -> tuple[_Sequence, ...]:
    own = list(pairwise(bounds))
    parents = parents or (NONE,) * len(own)
    return tuple(
        _Sequence(*own[one], tuple(row for up in line[:-1] for row in range(*own[up])))
        for one, line in enumerate(lineage(parents, one) for one in range(len(own)))
    )


def _attend_alone(heads_tgh: Tensor, sequence: _Sequence, *, kv_heads: int, scale: float) -> Tensor:
    own_ngh = heads_tgh[sequence.start : sequence.stop]
    heads, rows = heads_tgh.shape[1] - 2 * kv_heads, len(own_ngh)
    seen_mkh, mask_nm = own_ngh[:, heads:], None
    if sequence.before:
        before_t = torch.tensor(sequence.before, device=heads_tgh.device)
        seen_mkh = torch.cat([heads_tgh[:, heads:][before_t], seen_mkh])
        mask_nm = seen_mkh.new_ones(rows, len(seen_mkh), dtype=torch.bool).tril_(len(before_t))
    key_kmh, value_kmh = torch.split(seen_mkh.transpose(0, 1)[None], kv_heads, dim=1)
    output_hnh = F.scaled_dot_product_attention(
        own_ngh[:, :heads].transpose(0, 1)[None],
        key_kmh,
        value_kmh,
        attn_mask=mask_nm,
        is_causal=mask_nm is None,
        scale=scale,
        enable_gqa=heads != kv_heads,
    )
    return output_hnh[0].transpose(0, 1)


class _Group(NamedTuple):
    """Sequences of the same padded lengths: their rows, and where those lie once padded."""

    rows_sn: Tensor
    """(s, n) int64; a padding reads some row of the stream"""
    keys_sm: Tensor
    """(s, m) int64: what stands before, padded, and then the rows of `rows_sn`"""
    hidden_snm: Tensor
    """(s, n, m) bool: what a row does not see"""
    own_r: Tensor
    """(r,) int64: which of the s * n are rows"""
    stream_r: Tensor
    """(r,) int64: those rows in the stream"""
    seen_q: Tensor
    """(q,) int64: which of the s * m are keys"""
    keys_q: Tensor
    """(q,) int64: those keys' rows in the stream"""


@lru_cache(maxsize=8)
def _groups(sequences: tuple[_Sequence, ...], device: torch.device) -> list[_Group]:
    """Return sequences by their padded lengths, in the order of these.

    A row that several go on from gets their gradients in that order, whoever else is in the stream.
    """
    by_lengths: dict[tuple[int, int], list[_Sequence]] = {}
    for sequence in sequences:
        if not sequence.is_long:
            lengths = (len(sequence.before), sequence.stop - sequence.start)
            before, own = (-(-length // LENGTH_STEP) * LENGTH_STEP for length in lengths)
            by_lengths.setdefault((before, own), []).append(sequence)
    return [_group(by_lengths[lengths], *lengths, device) for lengths in sorted(by_lengths)]


def _group(members: Sequence[_Sequence], before: int, length: int, device: torch.device) -> _Group:
    """Lay out sequences of up to `length` rows that see up to `before` rows before them."""
    starts_s1 = torch.tensor([[sequence.start] for sequence in members])
    sizes_s1 = torch.tensor([[sequence.stop - sequence.start] for sequence in members])
    seen_s1 = torch.tensor([[len(sequence.before)] for sequence in members])
    steps_n, steps_b = torch.arange(length), torch.arange(before)
    rows_sn = starts_s1 + torch.minimum(steps_n, sizes_s1 - 1)
    before_sb = rows_sn[:, :1].repeat(1, before)
    for row_b, sequence in zip(before_sb, members, strict=True):
        row_b[: len(sequence.before)] = torch.tensor(sequence.before, dtype=torch.int64)
    keys_sm = torch.cat([before_sb, rows_sn], dim=1)
    own_sn, seen_sb = steps_n < sizes_s1, steps_b < seen_s1
    own_r = own_sn.flatten().nonzero()[:, 0]
    seen_q = torch.cat([seen_sb, own_sn], dim=1).flatten().nonzero()[:, 0]
    future_snn = (steps_n > steps_n[:, None]).expand(len(members), -1, -1)
    hidden_snm = torch.cat([~seen_sb[:, None].expand(-1, length, -1), future_snn], dim=2)
    stream_r, keys_q = rows_sn.flatten()[own_r], keys_sm.flatten()[seen_q]
    laid_out = (rows_sn, keys_sm, hidden_snm, own_r, stream_r, seen_q, keys_q)
    return _Group(*(tensor.to(device) for tensor in laid_out))


class _Attend(torch.autograd.Function):
    """Rows of long sequences are zeros, and get none of the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        heads_tgh: Tensor,
        kv_heads: int,
        sequences: tuple[_Sequence, ...],
        scale: float,
    ) -> Tensor:
        ctx.kv_heads, ctx.scale = kv_heads, scale
        ctx.groups = _groups(sequences, heads_tgh.device)
        heads = heads_tgh.shape[1] - 2 * kv_heads
        output_thh = heads_tgh.new_zeros(len(heads_tgh), heads, heads_tgh.shape[2])
        kept = []
        for group in ctx.groups:
            query, key, value = _sides(heads_tgh, group, kv_heads)
            weights = _weights(query @ key.transpose(-1, -2), group.hidden_snm, scale)
            padded_rhh = _rows(weights @ value, group.rows_sn.shape[1])
            output_thh[group.stream_r] = padded_rhh[group.own_r]
            kept.append(weights)
        ctx.save_for_backward(heads_tgh, *kept)
        return output_thh

    @staticmethod
    def backward(ctx: Any, grad_thh: Tensor) -> tuple[Tensor, None, None, None]:
        heads_tgh, *kept = ctx.saved_tensors
        heads = heads_tgh.shape[1] - 2 * ctx.kv_heads
        grad_tgh = torch.zeros_like(heads_tgh, dtype=torch.float32)
        for group, weights in zip(ctx.groups, kept, strict=True):
            rows, keys = group.rows_sn.shape[1], group.keys_sm.shape[1]
            padded_rhh = grad_thh.new_zeros(group.rows_sn.numel(), *grad_thh.shape[1:])
            padded_rhh[group.own_r] = grad_thh[group.stream_r]
            grad = _grouped(torch.unflatten(padded_rhh, 0, (-1, rows)), ctx.kv_heads)
            query, key, value = _sides(heads_tgh, group, ctx.kv_heads)
            grad_scores = (grad @ value.transpose(-1, -2)).float()
            weights32 = weights.float()
            grad_scores -= (grad_scores * weights32).sum(-1, keepdim=True)
            grad_scores = grad_scores.mul_(weights32).mul_(ctx.scale).to(weights.dtype)
            grad_rhh = _rows(grad_scores @ key, rows)[group.own_r]
            grad_tgh[:, :heads].index_add_(0, group.stream_r, grad_rhh.float())
            sides = (
                _rows(grad_scores.transpose(-1, -2) @ query, keys),
                _rows(weights.transpose(-1, -2) @ grad, keys),
            )
            grad_qgh = torch.cat(sides, dim=1)[group.seen_q]
            grad_tgh[:, heads:].index_add_(0, group.keys_q, grad_qgh.float())
        return grad_tgh.to(heads_tgh.dtype), None, None, None


def _sides(heads_tgh: Tensor, group: _Group, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query (s, K, g n, h), key and value (s, K, m, h): what shares a key is one product."""
    heads = heads_tgh.shape[1] - 2 * kv_heads
    query_snhh, seen_smkh = heads_tgh[:, :heads][group.rows_sn], heads_tgh[:, heads:][group.keys_sm]
    key, value = torch.split(seen_smkh.transpose(1, 2), kv_heads, dim=1)
    return _grouped(query_snhh, kv_heads), key, value


def _grouped(heads_snhh: Tensor, kv_heads: int) -> Tensor:
    """Return (s, K, g n, h) from (s, n, H, h)."""
    return torch.unflatten(heads_snhh, 2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _rows(heads_skah: Tensor, length: int) -> Tensor:
    """Return (s n, H, h) from (s, K, g n, h)."""
    split = torch.unflatten(heads_skah, 2, (-1, length))
    return split.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


def _weights(scores_skam: Tensor, hidden_snm: Tensor, scale: float) -> Tensor:
    """Return the softmax (s, K, g n, m) of what is seen, in the dtype of the scores."""
    scores_skgnm = torch.unflatten(scores_skam, 2, (-1, hidden_snm.shape[1])).float().mul_(scale)
    scores_skgnm.masked_fill_(hidden_snm[:, None, None], float("-inf"))
    return scores_skgnm.softmax(-1).to(scores_skam.dtype).flatten(2, 3)
