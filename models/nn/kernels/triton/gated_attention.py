"""`gated_attention` by kernels: a second softmax over constant keys, added behind a gate.

Scores are never stored; the backward computes them anew from each row's log of the sum.
Shapes: t rows, H query heads, K key heads, G query heads that share a key head, h head dimension,
p keys, s slices of rows.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels import reference
from models.nn.kernels.triton import gated_tiles as tiles
from models.nn.kernels.triton.rows import is_supported, readable


def gated_attention(
    output_thh: Tensor,
    query_hth: Tensor,
    *,
    keys_kph: Tensor,
    values_kph: Tensor,
    gate: Tensor,
    scale: float,
    visible_tp: Tensor | None = None,
) -> Tensor:
    """See `reference.gated_attention`, which keeps gradients where rows see different keys."""
    tensors = (output_thh, query_hth, keys_kph, values_kph, gate)
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    unsuited = (trains and visible_tp is not None) or not tiles.fits(query_hth)
    if unsuited or not is_supported(*tensors):
        return reference.gated_attention(
            output_thh,
            query_hth,
            keys_kph=keys_kph,
            values_kph=values_kph,
            gate=gate,
            scale=scale,
            visible_tp=visible_tp,
        )
    result_thh: Tensor = apply(
        _GatedAttention, output_thh, query_hth, keys_kph, values_kph, gate, visible_tp, scale
    )
    return result_thh


class _GatedAttention(torch.autograd.Function):
    """Keeps what it was given and, per head and row, the log of the sum of a softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        output_thh: Tensor,
        query_hth: Tensor,
        keys_kph: Tensor,
        values_kph: Tensor,
        gate: Tensor,
        visible_tp: Tensor | None,
        scale: float,
    ) -> Tensor:
        output_thh, query_hth = readable(output_thh), readable(query_hth)
        keys_kph, values_kph = keys_kph.contiguous(), values_kph.contiguous()
        heads, rows, size = query_hth.shape
        gate_th = gate.expand(rows, heads).contiguous()
        result_thh = torch.empty(rows, heads, size, dtype=output_thh.dtype, device=gate.device)
        logs_ht = torch.empty(heads, rows, dtype=torch.float32, device=gate.device)
        tiles.forward[(triton.cdiv(rows, tiles.ROWS), heads)](
            output_thh,
            query_hth,
            keys_kph,
            values_kph,
            gate_th,
            keys_kph if visible_tp is None else visible_tp,
            result_thh,
            logs_ht,
            *output_thh.stride()[:2],
            *query_hth.stride()[:2],
            0 if visible_tp is None else visible_tp.stride(0),
            rows,
            size,
            keys_kph.shape[1],
            scale,
            heads=heads,
            shared=heads // len(keys_kph),
            masked=visible_tp is not None,
            rows_a_tile=tiles.ROWS,
            keys_a_tile=tiles.KEYS,
            widest=tiles.width(size),
            num_stages=tiles.stages(query_hth),
        )
        ctx.save_for_backward(query_hth, keys_kph, values_kph, gate_th, logs_ht)
        ctx.scale, ctx.gate_dimensions = scale, gate.dim()
        return result_thh

    @staticmethod
    def backward(ctx: Any, grad_thh: Tensor) -> tuple[Tensor | None, ...]:
        query_hth, keys_kph, values_kph, gate_th, logs_ht = ctx.saved_tensors
        needs_output, needs_query, needs_keys, needs_values, needs_gate, *_ = ctx.needs_input_grad
        grad_thh = readable(grad_thh)
        heads, rows, size = query_hth.shape
        grad_query = torch.empty(heads, rows, size, dtype=query_hth.dtype, device=gate_th.device)
        products_ht = torch.empty_like(logs_ht)
        inputs = (grad_thh, query_hth, keys_kph, values_kph, gate_th, logs_ht, products_ht)
        places = (*grad_thh.stride()[:2], *query_hth.stride()[:2])
        sizes = (rows, size, keys_kph.shape[1], ctx.scale)
        options = {
            "heads": heads,
            "shared": heads // len(keys_kph),
            "rows_a_tile": tiles.ROWS,
            "keys_a_tile": tiles.KEYS,
            "widest": tiles.width(size),
            "num_stages": tiles.stages(query_hth),
        }
        grid = (triton.cdiv(rows, tiles.ROWS), heads)
        tiles.backward_queries[grid](*inputs, grad_query, *places, *sizes, **options)
        grad_keys = grad_values = None
        if needs_keys or needs_values:
            slices, keys = triton.cdiv(rows, tiles.SLICE), keys_kph.shape[1]
            parts = torch.empty(2, slices, *keys_kph.shape, device=gate_th.device)
            blocks = (slices, triton.cdiv(keys, tiles.KEYS), len(keys_kph))
            tiles.backward_keys[blocks](
                *inputs, *parts, *places, *sizes, rows_a_slice=tiles.SLICE, **options
            )
            grad_keys, grad_values = parts.sum(1).to(keys_kph.dtype)
        grad_gate = products_ht.T.to(gate_th.dtype) if ctx.gate_dimensions > 1 else None
        if ctx.gate_dimensions == 1:
            grad_gate = products_ht.sum(1).to(gate_th.dtype)
        return (
            grad_thh if needs_output else None,
            grad_query if needs_query else None,
            grad_keys if needs_keys else None,
            grad_values if needs_values else None,
            grad_gate if needs_gate else None,
            None,
            None,
        )
