"""Pointwise ops in float32 that keep bfloat16 for the backward, where products round (decision 27).

What they give is computed from, or is, what they keep: computed again, it has the same bits.
Shapes: t rows of a stream, G heads side by side, h head dimension, m inner width.
"""

from typing import Any

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import find, library
from models.nn.kernels.native.multiply import may_round
from models.nn.kernels.native.pointwise import dense_rows, takes_gates, takes_heads, turned_back


def takes_swiglu(gate_up_tm: Tensor) -> bool:
    """Say whether this op is computed here."""
    return _rounds() and takes_gates(gate_up_tm)


def takes_rotate(heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor) -> bool:
    """Say whether this op is computed here."""
    return _rounds() and takes_heads(heads_tgh, cos_th, sin_th)


def swiglu(gate_up_tm: Tensor) -> tuple[Tensor, Tensor]:
    """Return `reference.swiglu` of gates and ups (t, 2 m) in bfloat16's numbers, and these."""
    both: tuple[Tensor, Tensor] = apply(_SwiGlu, gate_up_tm)
    return both


def swiglu_again(kept_tm: Tensor) -> Tensor:
    """Return (t, m) as `swiglu` gave it, from what it kept."""
    inner_tm = torch.empty(kept_tm.shape[0], kept_tm.shape[1] // 2)
    find().call("swiglu_short_again", kept_tm, *inner_tm.shape, inner_tm)
    return inner_tm


def rotate(
    heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int
) -> tuple[Tensor, Tensor]:
    """Return `reference.rotate` in bfloat16's numbers, as float32 and as bfloat16."""
    both: tuple[Tensor, Tensor] = apply(_Rotate, heads_tgh, cos_th, sin_th, rotated)
    return both


def _rounds() -> bool:
    found = library()
    return found is not None and not found.trains and may_round()


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_tm: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = gate_up_tm.shape[0], gate_up_tm.shape[1] // 2
        kept_tm, inner_tm = _short(gate_up_tm), torch.empty(rows, width)
        given = (gate_up_tm, gate_up_tm.stride(0), rows, width)
        find().call("swiglu_short_forward", *given, kept_tm, inner_tm)
        ctx.mark_non_differentiable(kept_tm)
        ctx.set_materialize_grads(False)  # none is given for it
        ctx.save_for_backward(kept_tm)
        return inner_tm, kept_tm

    @staticmethod
    def backward(ctx: Any, grad_tm: Tensor, _: None) -> Tensor:
        (kept_tm,) = ctx.saved_tensors
        grad_tm = dense_rows(grad_tm)
        result_tm = torch.empty(kept_tm.shape)
        given = (grad_tm, grad_tm.stride(0), kept_tm, *grad_tm.shape)
        find().call("swiglu_short_backward", *given, result_tm)
        return result_tm


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads_tgh: Tensor, cos_th: Tensor, sin_th: Tensor, rotated: int
    ) -> tuple[Tensor, Tensor]:
        ctx.angles, ctx.rotated = (cos_th, sin_th), rotated
        kept_tgh, turned_tgh = _short(heads_tgh), torch.empty(heads_tgh.shape)
        rows, heads, dimension = heads_tgh.shape
        given = (heads_tgh, heads_tgh.stride(0), cos_th, sin_th, rows, heads, rotated, dimension)
        find().call("rotate_short", *given, kept_tgh, turned_tgh)
        ctx.mark_non_differentiable(kept_tgh)
        ctx.set_materialize_grads(False)
        return turned_tgh, kept_tgh

    @staticmethod
    def backward(ctx: Any, grad_tgh: Tensor, _: None) -> tuple[Tensor, None, None, None]:
        return turned_back(grad_tgh, ctx.angles, ctx.rotated), None, None, None


def _short(full: Tensor) -> Tensor:
    return torch.empty(full.shape, dtype=torch.bfloat16)
