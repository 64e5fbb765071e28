"""A head in 8 bits that says which tokens of a row may be its likeliest: `source/step_screen.h`.

Shapes: V vocabulary, n tokens of it, d hidden, k some inputs, c those in 8 bits, t probed.
"""

import torch
from torch import Tensor

from models.nn.attention import PackedCausal
from models.nn.backbone import Backbone
from models.nn.executors import NOBODY
from models.nn.kernels.native import PANEL_WIDTH, records
from models.nn.kernels.native.arena import Arena

EXACT = 32
"""Inputs that are kept in bfloat16 at the least: states are larger in a few than in all others."""
_TOGETHER = 64
"""So many integers a tile multiplies at once; what is left over of a row is kept in bfloat16."""
_LEVELS = 127
_MARGIN = 1 + 1e-4
"""What lengths are rounded up by: they are parts of a bound."""
_LARGEST = 1e20
"""Weights below it times states of the lengths that are screened are numbers in float32."""
_SHORTEST = 1e-20
"""What the length of a token counts as at the least."""
_GROUP, _STEPS, _NEXT_TO_NOTHING = 128, 2 * 4095, 1e-30
"""As in `source/block_float.h`: numbers that share a scale, half steps up to the largest of them,
and the largest of those that become zeros."""
_PROBE = 128
_AT_ONCE = 256 * PANEL_WIDTH


def make_screen(head_vd: Tensor, order_d: Tensor, arena: Arena, *, rounded: bool) -> records.Screen:
    """Keep a head (V, d) as a screen; one that says nothing if logits may overflow.

    The first of its inputs in `order_d` are kept exactly. Logits are computed by the head in
    bfloat16, or as it is in block floating point if `rounded`.
    """
    weight_vd, hidden = head_vd.bfloat16(), head_vd.shape[1]
    exact = EXACT + (hidden - EXACT) % _TOGETHER
    if hidden <= exact or not _is_plain(weight_vd):
        return records.Screen()
    exact_k, other_c = order_d.tensor_split([exact])
    packed = [_pack(rows_nd, exact_k, other_c) for rows_nd in torch.split(weight_vd, _AT_ONCE)]
    panels = torch.cat(packed)
    return records.Screen(
        panels=arena.keep(panels),
        order=arena.keep(torch.cat([exact_k, other_c]).int()),
        exact=exact,
        coarse=hidden - exact,
        stride=panels.shape[1],
        slack=_slack(head_vd, weight_vd) if rounded else 0.0,
    )


def _is_plain(weight_vd: Tensor) -> bool:
    """Say whether logits are numbers for all states that are screened."""
    largest = float(weight_vd.abs().amax())  # or no number
    return largest < _LARGEST


def _pack(rows_nd: Tensor, exact_k: Tensor, other_c: Tensor) -> Tensor:
    """Return (n / 16, bytes) of n tokens: scales, lengths of what is lost, lengths, and numbers."""
    other_nc = rows_nd[:, other_c].float()
    scale_n1 = other_nc.abs().amax(1, keepdim=True).clamp(min=_SHORTEST) / _LEVELS
    whole_nc = (other_nc / scale_n1).round()
    parts = (
        scale_n1,
        (other_nc - whole_nc * scale_n1).norm(dim=1) * _MARGIN,
        rows_nd.float().norm(dim=1).clamp(min=_SHORTEST) * _MARGIN,
        _grouped(rows_nd[:, exact_k], 2),
        _grouped((whole_nc + _LEVELS + 1).to(torch.uint8), 4),
    )
    count = len(rows_nd) // PANEL_WIDTH
    return torch.cat([part.reshape(count, -1).view(torch.uint8) for part in parts], dim=1)


def _slack(head_vd: Tensor, weight_vd: Tensor) -> float:
    """Return the most by which a token's weights in either form differ, over their length."""
    most = 0.0
    chunks = (torch.split(form_vd, _AT_ONCE) for form_vd in (head_vd, weight_vd))
    for given_nd, kept_nd in zip(*chunks, strict=True):
        steps = [
            (own_ng.abs().amax(1) / _STEPS).clamp(min=_NEXT_TO_NOTHING) * own_ng.shape[1] ** 0.5
            for own_ng in torch.split(given_nd.float(), _GROUP, dim=1)
        ]
        apart_n = (given_nd.float() - kept_nd.float()).norm(dim=1) + torch.stack(steps).norm(dim=0)
        size_n = kept_nd.float().norm(dim=1).clamp(min=_SHORTEST)
        most = max(most, float((apart_n / size_n).max()))
    return most * _MARGIN


def largest_first(backbone: Backbone) -> Tensor:
    """Return (d,) int64: the inputs of the head, those first in which states can be largest.

    They are the network's own rather than a text's, so random tokens show them.
    """
    generator = torch.Generator().manual_seed(1)
    ids_t = torch.randint(backbone.shape.vocab, (_PROBE,), generator=generator)
    hidden_td = backbone.hidden(
        ids_t,
        positions=torch.arange(_PROBE),
        attention=PackedCausal([(0, _PROBE)]),
        executor=NOBODY,
    )
    return hidden_td.float().abs().amax(0).argsort(descending=True)


def _grouped(numbers_nk: Tensor, size: int) -> Tensor:
    """Return (n / 16, k / size, 16, size): `size` inputs of each of 16 tokens side by side."""
    count, inputs = numbers_nk.shape
    panels = numbers_nk.view(count // PANEL_WIDTH, PANEL_WIDTH, inputs // size, size)
    return panels.transpose(1, 2).contiguous()
