"""What is kept of activations for the backward, where all of it costs more than it is worth."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from models.nn.kernels.native import library
from models.nn.kernels.native.multiply import may_round


def again(result: Tensor, compute: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Have what is done inside keep no `result` for its backward, which calls `compute` for it.

    `compute` must give the same bits from tensors that are kept anyhow. Other tensors are kept.
    """
    whole = (result.data_ptr(), result.shape, result.stride())

    def pack(saved: Tensor) -> Tensor | None:
        return None if (saved.data_ptr(), saved.shape, saved.stride()) == whole else saved

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        with torch.no_grad():
            return compute()

    return saved_tensors_hooks(pack, unpack)


def shorten(full: Tensor) -> Callable[[], Tensor]:
    """Return what gives a tensor back from half the bytes, where our products of float32 round.

    The tensor itself is rounded to bfloat16's numbers there, for `again` to give the same bits;
    nothing may have been kept of it before. What is kept of it later but for `again` keeps it all.
    """
    kept = full.detach()
    if full.dtype is torch.float32 and library() is not None and may_round():
        short = kept.bfloat16()
        kept.copy_(short)
        return short.float
    return kept.detach
