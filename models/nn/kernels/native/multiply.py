"""A product in float32 in C++, for processors that have no bfloat16: a row's bits are its own.

Where `torch.set_float32_matmul_precision` allows less than float32, both sides are rounded to 13
bits within groups of 128 numbers that enter one sum (`source/block_float.h`): a sixth of the error
of bfloat16, at 1.4 times the speed. Elsewhere it is float32.
Shapes: t rows, i in features, o out features.
"""

import torch
from torch import Tensor

from models.nn.kernels.native import PANEL_WIDTH, find, library

_INPUT_STEP = 16


def takes(x_ti: Tensor, weight_oi: Tensor) -> bool:
    """Say whether this product is computed here; the weight may be one that was transposed."""
    found = library()
    return (
        found is not None
        and not found.trains
        and x_ti.dtype is weight_oi.dtype is torch.float32
        and x_ti.is_cpu
        and x_ti.stride(1) == 1
        and x_ti.shape[1] == weight_oi.shape[1] > 0
        and 1 in weight_oi.stride()
        and weight_oi.shape[0] % PANEL_WIDTH == 0
        and weight_oi.shape[1] % _INPUT_STEP == 0
    )


def may_round() -> bool:
    """Say whether products of float32 may round their sides."""
    return torch.get_float32_matmul_precision() != "highest"


def multiply(x_ti: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
    """Return x WT + bias (t, o), float32."""
    y_to = x_ti.new_empty(len(x_ti), len(weight_oi))
    weight = (weight_oi, *weight_oi.stride(), *weight_oi.shape)
    name = "multiply_rounded" if may_round() else "multiply"
    find().call(name, x_ti, x_ti.stride(0), len(x_ti), *weight, bias_o, y_to)
    return y_to
