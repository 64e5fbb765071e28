"""`low_rank` by kernels where rows have different adapters; see `reference.low_rank` for shapes."""

import torch
from torch import Tensor

from models.nn.kernels import reference
from models.nn.kernels.triton.mixed import narrow_mixed, widen_mixed
from models.nn.kernels.triton.rows import is_supported


def low_rank(
    y_to: Tensor, x_ti: Tensor, *, down_ri: Tensor, up_or: Tensor, weight: Tensor | float
) -> Tensor:
    """See `reference.low_rank`, which keeps one adapter alone and what needs gradients."""
    tensors = (y_to, x_ti, down_ri, up_or)
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if isinstance(weight, float) or trains or not is_supported(*tensors):
        return reference.low_rank(y_to, x_ti, down_ri=down_ri, up_or=up_or, weight=weight)
    inner_tr = narrow_mixed(x_ti, down_ri, weight_tr=weight)
    return widen_mixed(y_to, inner_tr, up_or, weight_tr=weight)
