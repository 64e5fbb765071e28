"""The tiles of `gated_attention`: softmax in one sweep over the keys, and its gradients.

Shapes: t rows, h head dimension, p keys; a program has one query head, or, where gradients of keys
are summed, one key head.
"""

import triton
import triton.language as tl
from torch import Tensor

from models.nn.kernels.triton.rows import dot, load_tile, store_tile

ROWS, KEYS, SLICE = 32, 32, 256
_MOST_BYTES = 512
"""Of a head's row. Tiles of wider ones need more shared memory than all GPUs have (100 KiB of
compute capability 8.6): with one stage up to this, beyond it with any."""


def width(size: int) -> int:
    """Return the width of a tile that holds a head."""
    return max(16, int(triton.next_power_of_2(size)))


def fits(query_hth: Tensor) -> bool:
    """Say whether tiles of these heads have room on every GPU."""
    return _row_bytes(query_hth) <= _MOST_BYTES


def stages(query_hth: Tensor) -> int:
    """Return how many tiles of the inner loop are in shared memory at once."""
    return 1 if _row_bytes(query_hth) == _MOST_BYTES else 3


def _row_bytes(query_hth: Tensor) -> int:
    return width(query_hth.shape[-1]) * query_hth.element_size()


@triton.jit
def forward(
    output: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    gate: tl.tensor,
    visible: tl.tensor,
    result: tl.tensor,
    logs: tl.tensor,
    output_row: tl.tensor,
    output_head: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    visible_row: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    count: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    shared: tl.constexpr,
    masked: tl.constexpr,
    rows_a_tile: tl.constexpr,
    keys_a_tile: tl.constexpr,
    widest: tl.constexpr,
) -> None:
    """Write output plus gate times attention, (t, H, h), and the logs (H, t)."""
    head, parts_h = tl.program_id(1).to(tl.int64), tl.arange(0, widest)
    rows_t = tl.program_id(0) * rows_a_tile + tl.arange(0, rows_a_tile)
    query_th = load_tile(query + head * query_head, rows_t, rows, query_row, parts_h, size, 1)
    first = (head // shared) * count * size
    highest_t = tl.full((rows_a_tile,), float("-inf"), tl.float32)
    sum_t = tl.zeros((rows_a_tile,), tl.float32)
    added_th = tl.zeros((rows_a_tile, widest), tl.float32)
    for start in range(0, count, keys_a_tile):
        keys_p = start + tl.arange(0, keys_a_tile)
        keys_hp = load_tile(keys + first, parts_h, size, 1, keys_p, count, size)
        values_ph = load_tile(values + first, keys_p, count, size, parts_h, size, 1)
        sees_tp = (rows_t < rows)[:, None] & (keys_p < count)[None, :]
        if masked:
            seen_tp = load_tile(visible, rows_t, rows, visible_row, keys_p, count, 1)
            sees_tp = sees_tp & (seen_tp != 0)
        scores_tp = dot(query_th, keys_hp, tl.zeros((rows_a_tile, keys_a_tile), tl.float32))
        scores_tp = tl.where(sees_tp, scores_tp * scale, float("-inf"))
        peak_t = tl.maximum(highest_t, tl.max(scores_tp, axis=1))
        # Until a row has seen a key its peak is -inf, and -inf - -inf is not a number.
        safe_t = tl.where(peak_t == float("-inf"), 0.0, peak_t)
        weights_tp, kept_t = tl.exp(scores_tp - safe_t[:, None]), tl.exp(highest_t - safe_t)
        sum_t = sum_t * kept_t + tl.sum(weights_tp, axis=1)
        added_th = dot(weights_tp.to(values_ph.dtype), values_ph, added_th * kept_t[:, None])
        highest_t = peak_t
    held_t = rows_t < rows
    sum_t = tl.where(held_t, sum_t, 1.0)
    tl.store(logs + head * rows + rows_t, highest_t + tl.log(sum_t), mask=held_t)
    gate_t = tl.load(gate + rows_t * heads + head, mask=held_t, other=0.0).to(tl.float32)
    output += head * output_head
    output_th = load_tile(output, rows_t, rows, output_row, parts_h, size, 1).to(tl.float32)
    output_th += gate_t[:, None] * (added_th / sum_t[:, None])
    store_tile(result + head * size, rows_t, rows, heads * size, parts_h, size, 1, output_th)


@triton.jit
def weigh(
    query_th: tl.tensor,
    keys_hp: tl.tensor,
    logs_t: tl.tensor,
    sees_tp: tl.tensor,
    scale: tl.tensor,
) -> tl.tensor:
    """Return the softmax weights of a tile anew, float32, from the logs of the sums."""
    scores_tp = dot(query_th, keys_hp, tl.zeros(sees_tp.shape, tl.float32))
    return tl.where(sees_tp, tl.exp(scores_tp * scale - logs_t[:, None]), 0.0)


@triton.jit
def backward_queries(
    grad: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    gate: tl.tensor,
    logs: tl.tensor,
    products: tl.tensor,
    grad_query: tl.tensor,
    grad_row: tl.tensor,
    grad_head: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    count: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    shared: tl.constexpr,
    rows_a_tile: tl.constexpr,
    keys_a_tile: tl.constexpr,
    widest: tl.constexpr,
) -> None:
    """Write the gradient of the queries, and per head and row that of the gate."""
    head, parts_h = tl.program_id(1).to(tl.int64), tl.arange(0, widest)
    rows_t = tl.program_id(0) * rows_a_tile + tl.arange(0, rows_a_tile)
    held_t = rows_t < rows
    query_th = load_tile(query + head * query_head, rows_t, rows, query_row, parts_h, size, 1)
    grad_th = load_tile(grad + head * grad_head, rows_t, rows, grad_row, parts_h, size, 1)
    gate_t = tl.load(gate + rows_t * heads + head, mask=held_t, other=0.0).to(tl.float32)
    logs_t = tl.load(logs + head * rows + rows_t, mask=held_t, other=0.0)
    first = (head // shared) * count * size
    zeros_tp = tl.zeros((rows_a_tile, keys_a_tile), tl.float32)
    product_t = tl.zeros((rows_a_tile,), tl.float32)
    for start in range(0, count, keys_a_tile):
        keys_p = start + tl.arange(0, keys_a_tile)
        keys_hp = load_tile(keys + first, parts_h, size, 1, keys_p, count, size)
        values_hp = load_tile(values + first, parts_h, size, 1, keys_p, count, size)
        sees_tp = held_t[:, None] & (keys_p < count)[None, :]
        weights_tp = weigh(query_th, keys_hp, logs_t, sees_tp, scale)
        product_t += tl.sum(weights_tp * dot(grad_th, values_hp, zeros_tp), axis=1)
    tl.store(products + head * rows + rows_t, product_t, mask=held_t)
    total_th = tl.zeros((rows_a_tile, widest), tl.float32)
    for start in range(0, count, keys_a_tile):
        keys_p = start + tl.arange(0, keys_a_tile)
        keys_hp = load_tile(keys + first, parts_h, size, 1, keys_p, count, size)
        values_hp = load_tile(values + first, parts_h, size, 1, keys_p, count, size)
        sees_tp = held_t[:, None] & (keys_p < count)[None, :]
        weights_tp = weigh(query_th, keys_hp, logs_t, sees_tp, scale)
        slopes_tp = weights_tp * (dot(grad_th, values_hp, zeros_tp) - product_t[:, None])
        slopes_tp *= (gate_t * scale)[:, None]
        total_th = dot(slopes_tp.to(keys_hp.dtype), tl.trans(keys_hp), total_th)
    store_tile(grad_query + head * rows * size, rows_t, rows, size, parts_h, size, 1, total_th)


@triton.jit
def backward_keys(
    grad: tl.tensor,
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    gate: tl.tensor,
    logs: tl.tensor,
    products: tl.tensor,
    key_parts: tl.tensor,
    value_parts: tl.tensor,
    grad_row: tl.tensor,
    grad_head: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    count: tl.tensor,
    scale: tl.tensor,
    rows_a_slice: tl.constexpr,
    heads: tl.constexpr,
    shared: tl.constexpr,
    rows_a_tile: tl.constexpr,
    keys_a_tile: tl.constexpr,
    widest: tl.constexpr,
) -> None:
    """Write what one slice of rows adds to the gradients of keys and values, (s, K, p, h)."""
    key_head, parts_h = tl.program_id(2).to(tl.int64), tl.arange(0, widest)
    keys_p = tl.program_id(1) * keys_a_tile + tl.arange(0, keys_a_tile)
    first = key_head * count * size
    keys_hp = load_tile(keys + first, parts_h, size, 1, keys_p, count, size)
    values_hp = load_tile(values + first, parts_h, size, 1, keys_p, count, size)
    total_ph = tl.zeros((keys_a_tile, widest), tl.float32)
    value_total_ph = tl.zeros((keys_a_tile, widest), tl.float32)
    zeros_tp = tl.zeros((rows_a_tile, keys_a_tile), tl.float32)
    for part in range(shared):
        head = key_head * shared + part
        for start in range(0, rows_a_slice, rows_a_tile):
            rows_t = tl.program_id(0) * rows_a_slice + start + tl.arange(0, rows_a_tile)
            held_t, own = rows_t < rows, query + head * query_head
            query_th = load_tile(own, rows_t, rows, query_row, parts_h, size, 1)
            grad_th = load_tile(grad + head * grad_head, rows_t, rows, grad_row, parts_h, size, 1)
            gate_t = tl.load(gate + rows_t * heads + head, mask=held_t, other=0.0).to(tl.float32)
            logs_t = tl.load(logs + head * rows + rows_t, mask=held_t, other=0.0)
            product_t = tl.load(products + head * rows + rows_t, mask=held_t, other=0.0)
            sees_tp = held_t[:, None] & (keys_p < count)[None, :]
            weights_tp = weigh(query_th, keys_hp, logs_t, sees_tp, scale) * gate_t[:, None]
            slopes_tp = dot(grad_th, values_hp, zeros_tp) - product_t[:, None]
            slopes_tp = (weights_tp * slopes_tp * scale).to(query_th.dtype)
            total_ph = dot(tl.trans(slopes_tp), query_th, total_ph)
            weights_pt = tl.trans(weights_tp.to(grad_th.dtype))
            value_total_ph = dot(weights_pt, grad_th, value_total_ph)
    first += tl.program_id(0).to(tl.int64) * tl.num_programs(2) * count * size
    store_tile(key_parts + first, keys_p, count, size, parts_h, size, 1, total_ph)
    store_tile(value_parts + first, keys_p, count, size, parts_h, size, 1, value_total_ph)
