"""Layers of a plain Llama on which nothing but low-rank updates acts, as one op.

C++ calls the kernels of the ops one by one in their order, so bits are the same. What is left out
is Python and torch's graph between two ops, which come to cold caches there and cost a tenth of a
step and more (`docs/decisions/0038-layers-are-one-op-where-updates-are-all.md`).
Shapes: t rows of a stream, d hidden.
"""

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from models.nn.autograd import apply
from models.nn.kernels.native import INPUT_STEP, takes
from models.nn.kernels.native.pointwise import takes_norm
from models.nn.kernels.native.project import Product, in_order, takes_weight
from models.nn.kernels.native.stack import PRODUCTS, Grads, Stack
from models.nn.kernels.table import Heads, Layer, Update


def compute_layers(
    x_td: Tensor,
    normed_td: Tensor,
    *,
    layers: Sequence[Layer],
    updates: Sequence[Sequence[Update]],
    heads: Heads,
) -> tuple[Tensor, Tensor] | None:
    """See `table.Layers`; in bfloat16, of weights that do not train."""
    if not _takes(x_td, normed_td, layers, heads):
        return None
    products = []
    for weight, given in zip(chain(*(layer.weights for layer in layers)), updates, strict=True):
        own, others = in_order(given)
        if others:
            return None
        products.append(Product.of(weight.weight_oi, weight.bias_o, own))
    matrices = [
        matrix for given in products for one in given.updates for matrix in (one.down_ri, one.up_or)
    ]
    if len(set(map(id, matrices))) < len(matrices):
        return None  # gradients of one that is in several places would add up in another order
    both: tuple[Tensor, Tensor] = apply(
        _Layers, x_td, normed_td, layers, products, heads, *matrices
    )
    return both


def _takes(x_td: Tensor, normed_td: Tensor, layers: Sequence[Layer], heads: Heads) -> bool:
    weights = [weight for layer in layers for weight in layer.weights]
    gains = [gain for layer in layers for gain in layer.gains_d]
    biases = [weight.bias_o for weight in weights if weight.bias_o is not None]
    trained = (*gains, *biases, *(weight.weight_oi for weight in weights))
    return (
        x_td.dtype is torch.bfloat16
        and takes(x_td, normed_td, *heads.angles)
        and all(angle.is_contiguous() for angle in heads.angles)
        and heads.dimension % INPUT_STEP == 0
        and not any(tensor.requires_grad for tensor in trained)
        and all(takes_norm(x_td, gain) for gain in gains)
        and all(takes_weight(weight) for weight in weights)
    )


class _Wanted:
    """Which gradients are wanted, and how far down the backward goes for them."""

    def __init__(self, products: Sequence[Product], needs: Sequence[bool]) -> None:
        """Take what is said of the stream, its norm and then the products' matrices, in order."""
        stream, normed, *rest = needs
        matrices = iter(rest)
        self.input = stream or normed
        self.matrices = [list(islice(matrices, len(one.matrices))) for one in products]
        places = (place for place, each in enumerate(self.matrices) if any(each))
        self.first = -1 if self.input else next(places, len(products))
        """The first product that has a backward; only later ones need that of what they read."""

    @property
    def lowest(self) -> int:
        """The lowest layer that has a backward."""
        return max(self.first, 0) // PRODUCTS


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_td: Tensor,
        normed_td: Tensor,
        layers: Sequence[Layer],
        products: Sequence[Product],
        heads: Heads,
        *matrices: Tensor,  # noqa: ARG004 - for torch to see
    ) -> tuple[Tensor, Tensor]:
        wanted = _Wanted(products, (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[5:]))
        x_td, normed_td = x_td.contiguous(), normed_td.contiguous()
        stream_td, next_normed_td = (torch.empty(x_td.shape, dtype=x_td.dtype) for _ in range(2))
        ends = (stream_td, next_normed_td)
        stack = Stack(layers, products, heads, normed_td=normed_td, ends=ends, lowest=wanted.lowest)
        stack.forward(x_td)
        ctx.stack, ctx.wanted = stack, wanted
        ctx.save_for_backward(normed_td if products[0].updates else None, stream_td)
        return ends

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor, grad_normed_td: Tensor) -> tuple[Tensor | None, ...]:
        _kept = ctx.saved_tensors  # which the stack reads
        wanted: _Wanted = ctx.wanted
        grads: Grads = [
            [
                torch.empty(matrix.shape, dtype=matrix.dtype) if each else None
                for matrix, each in zip(product.matrices, own, strict=True)
            ]
            for product, own in zip(ctx.stack.products, wanted.matrices, strict=True)
        ]
        results: tuple[Tensor | None, Tensor | None] = (None, None)
        if wanted.input:
            shape, dtype = grad_td.shape, grad_td.dtype
            results = (torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype))
        ctx.stack.backward(
            grad_td.contiguous(),
            grad_normed_td.contiguous(),
            first=wanted.first,
            results=results,
            grads=grads,
        )
        del ctx.stack
        return *results, None, None, None, *chain(*grads)
