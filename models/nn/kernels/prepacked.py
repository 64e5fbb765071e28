"""Products over weights that oneDNN has laid out once, where torch can do that.

For few rows a product takes half of the time or less, for the laying out is most of it. The
operators are private to torch, so they are tried before they are used; `F.linear` is the form that
is always there. A prepacked weight is a copy.
Shapes: T rows, i in features, o out features.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

PREPACKED = "prepacked"
"""By this name a `Weight` keeps its product."""


class Prepacked:
    """A product by one weight, laid out; by any other weight it is `F.linear`."""

    def __init__(self, weight_oi: Tensor) -> None:
        """Lay out a weight that will not change."""
        self._weight_oi = weight_oi
        self._packed = _lay_out(weight_oi.detach())

    def __call__(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
        """Return (..., o) from (..., i), as `F.linear`, without a gradient."""
        if weight_oi is not self._weight_oi:
            return F.linear(x, weight_oi, bias_o)
        return _multiply(x, self._packed, bias_o)


def is_worth_it(weight_oi: Tensor) -> bool:
    """Say whether a weight can be laid out here, and gains by it."""
    return weight_oi.device.type == "cpu" and weight_oi.dtype == torch.bfloat16 and _runs()


@cache
def _runs() -> bool:
    """Try the operators on a small product, once."""
    x_ti, weight_oi = torch.ones(3, 32).bfloat16(), torch.ones(16, 32).bfloat16()
    try:
        with torch.no_grad():
            product_to = _multiply(x_ti, _lay_out(weight_oi), torch.ones(16).bfloat16())
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(product_to.eq(33).all())


def _lay_out(weight_oi: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_oi, None)  # noqa: SLF001
    return packed


def _multiply(x: Tensor, packed: Tensor, bias_o: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_o, "none", [], "")  # noqa: SLF001
    return product
