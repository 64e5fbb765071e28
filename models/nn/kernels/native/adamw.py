"""A step of AdamW in C++, one pass over memory, and the norms of gradients.

Shapes: n numbers, in any shape, contiguous.
"""

from math import sqrt

import torch
from torch import Tensor

from models.nn.kernels.native import find, library

_FORMS = {torch.bfloat16: "bf16", torch.float32: "f32"}


def takes(values: Tensor, gradient: Tensor, rounded: Tensor | None) -> bool:
    """Say whether these values, float32, are moved here, and put into `rounded`, bfloat16."""
    given = [values, gradient] if rounded is None else [values, gradient, rounded]
    return (
        values.dtype is torch.float32
        and takes_gradient(gradient)
        and (rounded is None or rounded.dtype is torch.bfloat16)
        and all(each.is_cpu and each.is_contiguous() for each in given)
    )


def takes_gradient(gradient: Tensor) -> bool:
    """Say whether the norms of this are taken here."""
    known = gradient.dtype in _FORMS and gradient.is_cpu and gradient.is_contiguous()
    found = library()
    return known and found is not None and found.trains


def step(
    values: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    rounded: Tensor | None,
    *,
    number: int,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    divisor: float,
) -> None:
    """Move values and moments by step `number` (from 1)."""
    corrections = [1 - beta**number for beta in betas]
    find().call(
        f"adamw_{_FORMS[gradient.dtype]}",
        *(values, gradient, *moments, rounded, values.numel()),
        *(1 / divisor, 1 - betas[0], 1 - betas[1], betas[1]),
        *(rate / corrections[0], 1 / sqrt(corrections[1]), epsilon, 1 - rate * weight_decay),
    )


def norms(gradient: Tensor, *, run: int) -> Tensor:
    """Return the norm of every `run` numbers, and of those that are left."""
    found = torch.empty(-(-gradient.numel() // run))
    find().call(f"norms_{_FORMS[gradient.dtype]}", gradient, gradient.numel(), run, found)
    return found
