"""One call of every op, as a training step over the embedded base makes it.

Shapes: t rows of a packed stream, i and o features, d hidden, m inner width, r rank, b bottleneck,
H query heads, K key heads, G = H + 2 K heads side by side, h head dimension, p keys, n rows with a
target or vectors of a table, v vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.nn.kernels import OpTable, Update, Weight
from models.nn.kernels.table import Shift

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 576, 1536, 9, 3, 64, 49152
RANK, BOTTLENECK, KEYS, TABLE = 16, 64, 10, 9
SEQUENCES, LABELLED_SHARE = 8, 0.3
SCALE = HEAD_DIM**-0.5

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An op's inputs by name, which of them train, and how it is called with them."""

    op: str
    inputs: Inputs
    call: Callable[[OpTable, Inputs], Tensor]
    trained: frozenset[str] = field(default_factory=frozenset)


class Shapes:
    """Draws inputs for `tokens` rows from one generator."""

    def __init__(self, tokens: int, *, dtype: torch.dtype) -> None:
        self.tokens = tokens
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(7)

    def draw(self, *size: int, spread: float = 1.0) -> Tensor:
        """Return normal values."""
        return (torch.randn(size, generator=self._generator) * spread).to(self._dtype)

    def index(self, most: int, count: int) -> Tensor:
        """Return `count` integers below `most`."""
        return torch.randint(most, (count,), generator=self._generator)

    def linear(self, out: int, inner: int) -> Tensor:
        """Return a weight that keeps the size of what it multiplies."""
        return self.draw(out, inner, spread=inner**-0.5)


def make_cases(tokens: int, *, dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    """Return a case of every op over `tokens` rows."""
    shapes = Shapes(tokens, dtype=dtype)
    return [
        _project(shapes),
        _scale_shift(shapes),
        *_norms(shapes),
        _rotate(shapes),
        _swiglu(shapes),
        _attend(shapes),
        _cross_entropy(shapes),
        _low_rank(shapes),
        _bottleneck(shapes),
        _gated_attention(shapes),
        *_row_vectors(shapes),
    ]


def _project(shapes: Shapes) -> Case:
    out = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    bounds = [0, HEADS * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM, out]
    weight = Weight(shapes.linear(out, HIDDEN))
    parts = list(zip("qkv", bounds, bounds[1:], strict=False))
    inputs = {"x_ti": shapes.draw(shapes.tokens, HIDDEN)}
    for name, start, stop in parts:
        inputs[f"down_{name}"] = shapes.linear(RANK, HIDDEN)
        inputs[f"up_{name}"] = shapes.linear(stop - start, RANK)

    def call(ops: OpTable, t: Inputs) -> Tensor:
        updates = [
            Update((0, shapes.tokens), (start, stop), t[f"down_{name}"], t[f"up_{name}"], 2.0)
            for name, start, stop in parts
        ]
        return ops.project(t["x_ti"], weight=weight, updates=updates)

    return Case("project", inputs, call, trained=frozenset(inputs))


def _scale_shift(shapes: Shapes) -> Case:
    inputs = {"y_to": shapes.draw(shapes.tokens, INNER), "scale_o": shapes.draw(INNER)}

    def call(ops: OpTable, t: Inputs) -> Tensor:
        return ops.scale_shift(
            t["y_to"], shifts=[Shift((0, shapes.tokens), (0, INNER), t["scale_o"], None)]
        )

    return Case("scale_shift", inputs, call, trained=frozenset(inputs))


def _norms(shapes: Shapes) -> list[Case]:
    inputs = {"x_td": shapes.draw(shapes.tokens, HIDDEN), "gain": shapes.draw(HIDDEN)}
    two = {**inputs, "y_td": shapes.draw(shapes.tokens, HIDDEN)}

    def norm(ops: OpTable, t: Inputs) -> Tensor:
        return ops.rms_norm(t["x_td"], gain=t["gain"], epsilon=1e-5)

    def add_norm(ops: OpTable, t: Inputs) -> Tensor:
        return torch.cat(ops.add_rms_norm(t["x_td"], t["y_td"], gain=t["gain"], epsilon=1e-5))

    return [
        Case("rms_norm", inputs, norm, trained=frozenset({"x_td"})),
        Case("add_rms_norm", two, add_norm, trained=frozenset({"x_td", "y_td"})),
    ]


def _rotate(shapes: Shapes) -> Case:
    angles_th = torch.outer(
        torch.arange(shapes.tokens), 1e4 ** -(torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    ).repeat(1, 2)
    like = shapes.draw(1)
    inputs = {
        "heads_tgh": shapes.draw(shapes.tokens, HEADS + 2 * KV_HEADS, HEAD_DIM),
        "cos_th": angles_th.cos().to(like.dtype),
        "sin_th": angles_th.sin().to(like.dtype),
    }

    def call(ops: OpTable, t: Inputs) -> Tensor:
        angles = {"cos_th": t["cos_th"], "sin_th": t["sin_th"]}
        return ops.rotate(t["heads_tgh"], rotated=HEADS + KV_HEADS, **angles)

    return Case("rotate", inputs, call, trained=frozenset({"heads_tgh"}))


def _swiglu(shapes: Shapes) -> Case:
    inputs = {"gate_up_tm": shapes.draw(shapes.tokens, 2 * INNER)}
    return Case("swiglu", inputs, lambda ops, t: ops.swiglu(**t), trained=frozenset(inputs))


def _attend(shapes: Shapes) -> Case:
    inputs = {"heads_tgh": shapes.draw(shapes.tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)}
    bounds = [shapes.tokens * at // SEQUENCES for at in range(SEQUENCES + 1)]

    def call(ops: OpTable, t: Inputs) -> Tensor:
        return ops.attend_packed(t["heads_tgh"], kv_heads=KV_HEADS, bounds=bounds, scale=SCALE)

    return Case("attend_packed", inputs, call, trained=frozenset(inputs))


def _cross_entropy(shapes: Shapes) -> Case:
    rows = max(int(shapes.tokens * LABELLED_SHARE), 1)
    weight = Weight(shapes.linear(VOCABULARY, HIDDEN))
    targets_n = shapes.index(VOCABULARY, rows)
    inputs = {"hidden_nd": shapes.draw(rows, HIDDEN)}

    def call(ops: OpTable, t: Inputs) -> Tensor:
        return ops.linear_cross_entropy(t["hidden_nd"], weight=weight, targets_n=targets_n)[0]

    return Case("linear_cross_entropy", inputs, call, trained=frozenset(inputs))


def _low_rank(shapes: Shapes) -> Case:
    inputs = {
        "y_to": shapes.draw(shapes.tokens, HIDDEN),
        "x_ti": shapes.draw(shapes.tokens, INNER),
        "down_ri": shapes.linear(RANK, INNER),
        "up_or": shapes.linear(HIDDEN, RANK),
    }
    return Case(
        "low_rank", inputs, lambda ops, t: ops.low_rank(**t, weight=2.0), trained=frozenset(inputs)
    )


def _bottleneck(shapes: Shapes) -> Case:
    inputs = {
        "y_td": shapes.draw(shapes.tokens, HIDDEN),
        "z_td": shapes.draw(shapes.tokens, HIDDEN),
        "down_md": shapes.linear(BOTTLENECK, HIDDEN),
        "down_bias_m": shapes.draw(BOTTLENECK),
        "up_dm": shapes.linear(HIDDEN, BOTTLENECK),
    }

    def call(ops: OpTable, t: Inputs) -> Tensor:
        fixed: dict[str, Any] = {"activation": "gelu", "weight": 1.0}
        return ops.bottleneck(**t, **fixed)

    return Case("bottleneck", inputs, call, trained=frozenset(inputs))


def _gated_attention(shapes: Shapes) -> Case:
    inputs = {
        "output_thh": shapes.draw(shapes.tokens, HEADS, HEAD_DIM),
        "query_hth": shapes.draw(HEADS, shapes.tokens, HEAD_DIM),
        "keys_kph": shapes.draw(KV_HEADS, KEYS, HEAD_DIM),
        "values_kph": shapes.draw(KV_HEADS, KEYS, HEAD_DIM),
        "gate": shapes.draw(HEADS),
    }
    return Case(
        "gated_attention",
        inputs,
        lambda ops, t: ops.gated_attention(**t, scale=SCALE),
        trained=frozenset(inputs),
    )


def _row_vectors(shapes: Shapes) -> list[Case]:
    rows_t = shapes.index(TABLE, shapes.tokens)
    inputs = {"x_ti": shapes.draw(shapes.tokens, HIDDEN), "table_ni": shapes.draw(TABLE, HIDDEN)}
    return [
        Case("row_scale", inputs, lambda ops, t: ops.row_scale(**t, rows_t=rows_t)),
        Case("row_shift", inputs, lambda ops, t: ops.row_shift(**t, rows_t=rows_t)),
    ]
