"""What is kept of activations for the backward, where all of it costs more than it is worth."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from models.nn.kernels import OpTable
from models.nn.kernels.native import short


def again(result: Tensor, compute: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Have what is done inside keep no `result` for its backward, which calls `compute` for it.

    `compute` must give the same bits from tensors that are kept anyhow. Other tensors are kept.
    """
    whole = (result.data_ptr(), result.shape, result.stride())

    def pack(saved: Tensor) -> Tensor | None:
        given = (saved.data_ptr(), saved.shape, saved.stride()) == whole
        # As itself, an op's own output would keep the op, which keeps it, until a backward.
        return None if given else saved.detach()

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        with torch.no_grad():
            return compute()

    return saved_tensors_hooks(pack, unpack)


def swiglu(table: OpTable, gate_up_tm: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the inner states of gates and ups, and what computes them from what is kept anyhow."""
    if short.takes_swiglu(gate_up_tm):
        inner_tm, kept_tm = short.swiglu(gate_up_tm)
        return inner_tm, partial(short.swiglu_again, kept_tm)
    return table.swiglu(gate_up_tm), partial(table.swiglu, gate_up_tm.detach())


def rotate(
    table: OpTable, heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return heads that are turned, and what gives them back from what is kept of them."""
    if short.takes_rotate(heads_tgh, cos_th, sin_th):
        turned_tgh, kept_tgh = short.rotate(
            heads_tgh, cos_th=cos_th, sin_th=sin_th, rotated=rotated
        )
        return turned_tgh, kept_tgh.float
    turned_tgh = table.rotate(heads_tgh, cos_th=cos_th, sin_th=sin_th, rotated=rotated)
    kept_tgh = turned_tgh.detach()
    return turned_tgh, kept_tgh.detach
