"""A base whose linear weights are held in 8 bits, for serving on a CPU; what it computes is not.

A row of a weight has one scale, its largest magnitude over 127 (symmetric rounding, as in
arXiv 2208.07339 section 2.1, of weights alone). Few rows at a time are bound by the bytes of the
weights: torch's kernel multiplies by the 8 bits as they are. Many rows unpack the weight first.
The engine's C++ step reads the same numbers by products of its own.
Shapes: T rows, i in features, o out features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import Unavailable
from models.nn.backbone import Backbone
from models.nn.leaves import LinearLeaf
from models.nn.quantized import is_packed, unpack
from models.nn.shape import path_of

FEW_ROWS = 8
"""Up to so many rows the kernel is worth it; beyond, unpacking is paid back."""
_MOST = 127


def hold_in_8_bits(backbone: Backbone) -> Backbone:
    """Replace every linear weight, the head's too, by one of 8 bits; embeddings and norms stay.

    Returns the base by its network's own forward, which reads them; the one that was given is of no
    use any more. `Unavailable` where torch has no such product.
    """
    if backbone.device.type != "cpu" or not hasattr(torch.ops.aten, "_weight_int8pack_mm"):
        raise Unavailable(
            "Serving from 8 bits needs a CPU and a torch that multiplies by them.",
            code="quantization_unavailable",
        )
    for place in backbone.shape.linears:
        leaf = backbone.network.get_submodule(path_of(place))
        if isinstance(leaf, LinearLeaf) and not is_packed(leaf.weight):
            leaf.hold(_pack(leaf.weight), product=multiply)
    return backbone.without_flat()


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (..., o) from (..., i), as `F.linear`; of a weight that is not packed too."""
    if not is_packed(weight):
        return F.linear(x, weight, bias)
    rows_ti = x.reshape(-1, x.shape[-1])
    if len(rows_ti) > FEW_ROWS:
        return F.linear(x, unpack(weight, dtype=x.dtype), bias)
    kernel = torch.ops.aten._weight_int8pack_mm  # noqa: SLF001 - its only name
    y_to: Tensor = kernel(rows_ti, weight.data, scales_of(weight).to(x.dtype))
    y_to = y_to if bias is None else y_to + bias
    return y_to.view(*x.shape[:-1], -1)


def scales_of(weight: Tensor) -> Tensor:
    """Return (o,) float32: what one in a packed weight's row stands for."""
    scales_o: Tensor = weight.SCB / _MOST  # type: ignore[attr-defined]  # see `_pack`
    return scales_o


def _pack(weight_oi: Tensor) -> nn.Parameter:
    """Return int8 (o, i) that carries its rows' largest magnitudes, as `quantized.unpack` reads."""
    exact_oi = weight_oi.detach().float()
    largest_o = exact_oi.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * _MOST)
    rounded_oi = (exact_oi * (_MOST / largest_o)[:, None]).round_().to(torch.int8)
    packed = nn.Parameter(rounded_oi, requires_grad=False)
    packed.SCB = largest_o  # type: ignore[attr-defined]  # bitsandbytes' own name for it
    return packed
