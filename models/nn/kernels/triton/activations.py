"""Nonlinearities inside kernels, and their slopes, in float32; `reference.ACTIVATIONS` by name."""

import triton
import triton.language as tl


@triton.jit
def activate(x: tl.tensor, name: tl.constexpr) -> tl.tensor:
    """Return the activation of a tile; `none` leaves it as it is."""
    if name == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif name == "relu":
        x = tl.where(x <= 0.0, 0.0, x)  # a maximum would turn NaN into 0
    elif name == "silu":
        x = x * tl.sigmoid(x)
    elif name == "tanh":
        # Near zero the sigmoid's difference from a half has lost digits that the series has.
        square = x * x
        series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)))
        x = tl.where(tl.abs(x) < 0.125, series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)
    return x


@triton.jit
def slope(x: tl.tensor, name: tl.constexpr) -> tl.tensor:
    """Return the derivative of the activation at each number of a tile."""
    if name == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        x = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    elif name == "relu":
        x = tl.where(x <= 0.0, 0.0, tl.where(x > 0.0, 1.0, x))  # NaN stays NaN
    elif name == "silu":
        share = tl.sigmoid(x)
        x = share * (1.0 + x * (1.0 - share))
    elif name == "tanh":
        x = 4.0 * tl.sigmoid(2.0 * x) * tl.sigmoid(-2.0 * x)
    return x
