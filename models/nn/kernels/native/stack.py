"""Layers with low-rank updates as the kernels read them, and memory for what they write.

Shapes: t rows of a stream, d hidden, G heads side by side, H query heads, h head dimension, f what
heads give together, m inner width.
"""

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from models.nn.kernels.native import find
from models.nn.kernels.native.attention import Sequences
from models.nn.kernels.native.project import Product
from models.nn.kernels.table import Heads, Layer

PRODUCTS = 4
"""Of a layer: heads, output, gate and up, down."""
_LAYER = f"{9 * PRODUCTS}q2qd2qd11q"
"""A layer as the kernels read it (`source/layers.h`): products, norms, what it reads and writes."""

_NORMED, _STREAM, _INNER = 0, 8, 10
"""Which of a layer's pieces are its norm, its stream, and the first product's inner values."""

Grads = list[list[Tensor | None]]
"""Of the matrices of each product."""


class Stack:
    """Layers in order, and memory for what they write, which their backward reads again.

    It keeps neither the tensors that it begins with nor those that it ends with.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        products: Sequence[Product],
        heads: Heads,
        *,
        normed_td: Tensor,
        ends: tuple[Tensor, Tensor],
        lowest: int,
    ) -> None:
        """Begin with a stream's norm (t, d); `ends` are the stream and the norm that they write.

        Layers below the `lowest` that has a backward share their memory.
        """
        self.products = products
        self._layers = layers
        self._rows = len(normed_td)
        self._angles = heads.angles
        self._sequences = Sequences.of(
            layers[0].heads.weight_oi.shape[0] // heads.dimension,
            heads.dimension,
            kv_heads=heads.kv_heads,
            bounds=heads.bounds,
            scale=heads.dimension**-0.5,
            parents=heads.parents,
        )
        self._rooms: list[Tensor] = []
        self._spare = torch.empty(normed_td.nbytes, dtype=torch.uint8)
        sizes = [self._sizes(index, normed_td.nbytes) for index in range(len(layers))]
        sizes[-1][_STREAM] = 0  # which is an end
        shared = self._lay([max(each) for each in zip(*sizes[:lowest], strict=True)])
        places = [shared if index < lowest else self._lay(own) for index, own in enumerate(sizes)]
        stream_td, next_normed_td = ends
        places[-1] = [*places[-1]]
        places[-1][_STREAM] = stream_td.data_ptr()
        self._normed = [own[_NORMED] for own in places[1:]]
        self._normed = [normed_td.data_ptr(), *self._normed, next_normed_td.data_ptr()]
        """What every layer reads, and what the last one writes."""
        self._places = places

    def forward(self, x_td: Tensor) -> None:
        """Compute the layers from their stream (t, d)."""
        records, _updates = self._records([[None] * len(one.matrices) for one in self.products])
        given = (records, len(self._layers), x_td, self._rows)
        find().call("layers_forward", *given, *self._sequences, *self._angles)

    def backward(
        self,
        grad_td: Tensor,
        grad_normed_td: Tensor,
        *,
        first: int,
        results: tuple[Tensor | None, Tensor | None],
        grads: Grads,
    ) -> None:
        """Compute gradients from those of both ends, down to the product `first`.

        Those of the stream and the norm that it began with are written where `first` is -1.
        """
        records, _updates = self._records(grads)
        given = (records, len(self._layers), first, self._rows, *self._sequences, *self._angles)
        find().call("layers_backward", *given, grad_td, grad_normed_td, *results)

    def _own(self, index: int) -> Sequence[Product]:
        return self.products[PRODUCTS * index : PRODUCTS * (index + 1)]

    def _sizes(self, index: int, stream: int) -> list[int]:
        """Return the bytes of each piece that a layer writes; none of what nobody reads again.

        A stream takes so many bytes.
        """
        heads, output, gate_up, down = self._own(index)
        wide, logs = 2 * self._rows, 4 * self._rows
        return [
            stream if heads.updates else 0,
            wide * len(heads.weight_oi),
            wide * output.weight_oi.shape[1],
            logs * self._sequences.query_heads,
            stream,
            logs,
            stream if gate_up.updates else 0,
            wide * len(gate_up.weight_oi),
            stream,
            logs,
            *(2 * product.layout.size for product in (heads, output, gate_up, down)),
        ]

    def _lay(self, sizes: Sequence[int]) -> list[int]:
        """Return addresses of so many bytes each; what has none lies where nobody reads again.

        Each is a piece of its own: a layer's as one would hardly fit into what others have freed.
        """
        rooms = [torch.empty(size, dtype=torch.uint8) if size else self._spare for size in sizes]
        self._rooms += rooms
        return [room.data_ptr() for room in rooms]

    def _records(self, grads: Grads) -> tuple[bytes, "array[int]"]:
        """Return the layers, and the updates that they point to."""
        packed = [
            product.layout.records(product.updates, product.matrices, own)
            for product, own in zip(self.products, grads, strict=True)
        ]
        updates = array("B", b"".join(packed))
        starts = list(accumulate(map(len, packed), initial=updates.buffer_info()[0]))
        values: list[float] = []
        for index, (layer, places) in enumerate(zip(self._layers, self._places, strict=True)):
            own = slice(PRODUCTS * index, PRODUCTS * (index + 1))
            inner = places[_INNER:]
            for product, start, at in zip(self.products[own], starts[own], inner, strict=True):
                values += (*_linear(product), start, len(product.updates), at, product.layout.size)
            for gain_d, epsilon in zip(layer.gains_d, layer.epsilons, strict=True):
                values += (gain_d.data_ptr(), gain_d.dtype is torch.float32, epsilon)
            values += (self._normed[index], *places[1:_INNER], self._normed[index + 1])
        return struct.pack("=" + _LAYER * len(self._layers), *values), updates


def _linear(product: Product) -> tuple[int, int, int, int, int]:
    """Return a weight as the kernels read it, and its bias."""
    weight_oi, bias_o = product.weight_oi, product.bias_o
    bias = 0 if bias_o is None else bias_o.data_ptr()
    return weight_oi.data_ptr(), weight_oi.stride(0), *weight_oi.shape, bias
