"""Inverting distributions over a vocabulary with a number from [0, 1) for each row.

Nothing is sorted but a few candidates, and no running sum is longer than it must be. Every row is
computed by itself: what it gets does not depend on its neighbours.
Shapes: m rows, V vocabulary padded to whole groups, G groups of g tokens, k candidates, B buckets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CANDIDATES = 64
"""Nuclei are first sought among this many tokens; a wider one is found by its smallest weight."""
GROUP = 64
_DIGITS = ((20, 11), (9, 11), (0, 9))
"""Shift and width of the digits by which the bits of a positive float32 are read, highest first."""


def weigh(logits_mv: Tensor, temperature_m: Tensor) -> Tensor:
    """Return (m, V) float32: exp((logit - highest) / temperature), then zeros to whole groups."""
    rows, vocab = logits_mv.shape
    weight_mv = logits_mv.new_empty(rows, -(-vocab // GROUP) * GROUP)
    weight_mv[:, vocab:] = 0
    inner_mv = weight_mv[:, :vocab]
    inner_mv.copy_(logits_mv).sub_(logits_mv.amax(-1, keepdim=True))
    inner_mv.div_(temperature_m[:, None]).exp_()
    return weight_mv


def draw_whole(weight_mv: Tensor, uniform_m: Tensor) -> Tensor:
    """Return (m,) int64: where the running sum of weights passes `uniform` of the whole."""
    grouped_mgg = weight_mv.view(len(weight_mv), -1, GROUP)
    running_mg = grouped_mgg.sum(-1).cumsum(-1)
    target_m1 = running_mg[:, -1:] * uniform_m[:, None]
    group_m1 = _passed(running_mg, target_m1)
    before_m1 = F.pad(running_mg, (1, 0)).gather(-1, group_m1)
    inside_mg = grouped_mgg.gather(1, group_m1[:, :, None].expand(-1, 1, GROUP))[:, 0].cumsum(-1)
    place_m1 = _passed(inside_mg, target_m1 - before_m1)
    return (group_m1 * GROUP + place_m1)[:, 0]


def draw_nucleus(weight_mv: Tensor, top_p_m: Tensor, uniform_m: Tensor) -> Tensor:
    """Return (m,) int64 from the smallest set of likeliest tokens with mass `top_p`.

    Source: nucleus sampling, arXiv 1904.09751 section 3.1.
    """
    total_m = weight_mv.view(len(weight_mv), -1, GROUP).sum(-1).sum(-1)
    likely_mk, ids_mk = _candidates(weight_mv)
    running_mk = likely_mk.cumsum(-1)
    mass_m = top_p_m * total_m
    likely_mk = likely_mk * (running_mk - likely_mk < mass_m[:, None])
    inside_mk = likely_mk.cumsum(-1)
    place_m1 = _passed(inside_mk, inside_mk[:, -1:] * uniform_m[:, None])
    tokens_m = ids_mk.gather(-1, place_m1)[:, 0]
    wide = (running_mk[:, -1] < mass_m).nonzero()[:, 0]
    if len(wide):
        cut_wv = _cut(weight_mv[wide], top_p_m[wide])
        tokens_m[wide] = draw_whole(cut_wv, uniform_m[wide])
    return tokens_m


def _passed(running_mk: Tensor, target_m1: Tensor) -> Tensor:
    """Return (m, 1) int64: the first place whose running sum is over the target.

    Rounding may leave a target at the very end; then it is the last place that adds something. A
    row that is not of numbers gets some place.
    """
    last_m1 = torch.searchsorted(running_mk, running_mk[:, -1:].contiguous())
    place_m1 = torch.searchsorted(running_mk, target_m1, right=True)
    return torch.minimum(place_m1, last_m1).clamp_(max=running_mk.shape[-1] - 1)


def _candidates(weight_mv: Tensor) -> tuple[Tensor, Tensor]:
    """Return (m, k) twice: the largest weights, descending, and their tokens.

    They lie in the groups with the largest maxima, so only those are searched.
    """
    grouped_mgg = weight_mv.view(len(weight_mv), -1, GROUP)
    groups = min(CANDIDATES, grouped_mgg.shape[1])
    best_mn = grouped_mgg.amax(-1).topk(groups, dim=-1).indices
    inner_mg = grouped_mgg.gather(1, best_mn[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    likely_mk, place_mk = inner_mg.topk(min(CANDIDATES, inner_mg.shape[1]), dim=-1)
    ids_mk = best_mn.gather(-1, place_mk // GROUP) * GROUP + place_mk % GROUP
    return likely_mk, ids_mk


def _cut(weight_mv: Tensor, top_p_m: Tensor) -> Tensor:
    """Return the weights with those outside of the nucleus at zero.

    The smallest weight inside is found digit by digit, by the mass of all tokens with each digit;
    of several tokens with that very weight the first ones are inside, as many as are needed.
    """
    bits_mv = weight_mv.view(torch.int32)
    exact_mv = weight_mv.double()
    mass_m1 = top_p_m.double()[:, None] * exact_mv.sum(-1, keepdim=True)
    above_m1 = torch.zeros_like(mass_m1)
    edge_m1 = torch.zeros(len(weight_mv), 1, dtype=torch.int64, device=weight_mv.device)
    for shift, width in _DIGITS:
        reached_mv = bits_mv >> (shift + width) == edge_m1
        digit_mv = (bits_mv >> shift & (1 << width) - 1).long()
        by_digit_mb = exact_mv.new_zeros(len(weight_mv), 1 << width)
        by_digit_mb.scatter_add_(1, digit_mv, exact_mv * reached_mv)
        higher_mb = by_digit_mb.flip(-1).cumsum(-1).flip(-1) - by_digit_mb + above_m1
        # Of the digits that something has, the lowest one above which there is not enough.
        short_mb = (higher_mb < mass_m1) & (by_digit_mb > 0)
        digit_m1 = short_mb.int().argmax(-1, keepdim=True)
        above_m1 = higher_mb.gather(-1, digit_m1)
        edge_m1 = (edge_m1 << width) + digit_m1
    least_m1 = edge_m1.int().view(torch.float32)
    equal_mv = weight_mv == least_m1
    wanted_m1 = ((mass_m1 - above_m1) / least_m1.double()).ceil()
    return weight_mv * ((weight_mv > least_m1) | (equal_mv & (equal_mv.cumsum(-1) <= wanted_m1)))
