"""Parameters of a network as the matrices and vectors that the C++ step reads.

Shapes: d hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.nn.kernels.native import Library, records
from models.nn.kernels.native.arena import Arena
from models.nn.kernels.native.reader import Order, Reader
from models.nn.kernels.native.screen import make_screen
from models.nn.shape import HEAD


@dataclass(frozen=True)
class Packer:
    """How parameters become matrices of the step."""

    reader: Reader
    library: Library
    codes: bool
    rounded: bool
    order_d: Tensor | None
    """Which inputs of the head are large, where it has a screen."""

    def fill_layer(self, record: records.Layer, arena: Arena, *, layer: int) -> None:
        """Pack the parameters of a layer; its cache is another's business."""
        names = [f"layers.{layer}.self_attn.{name}" for name in records.PLACES[:4]]
        names += [f"layers.{layer}.mlp.{name}" for name in records.PLACES[4:]]
        pair_halves = partial(_pair_halves, pairs=self.reader.shape.head_dim // 2)
        sites: tuple[tuple[str, list[str], Order], ...] = (
            ("qkv", names[:3], pair_halves),
            ("o", names[3:4], _as_they_are),
            ("gate_up", names[4:6], _take_turns),
            ("down", names[6:], _as_they_are),
        )
        for site, places, order in sites:
            setattr(record, site, self._pack(arena, *self.reader.joined(places, order=order)))
            biases = self.reader.biases(places, order=order)
            setattr(record, f"{site}_bias", arena.put(biases))
        for index, norm in enumerate(records.NORMS):
            record.gains[index] = arena.put(self.reader.gain(f"layers.{layer}.{norm}"))

    def fill_head(self, record: records.Model, arena: Arena) -> None:
        """Pack the head, and its screen if it has one."""
        head, scales = self.reader.joined([HEAD], order=_as_they_are)
        bias = self.reader.biases([HEAD], order=_as_they_are)
        record.head, record.head_bias = self._pack(arena, head, scales), arena.put(bias)
        record.screen = records.Screen()
        if self.order_d is not None and scales is None and bias is None:
            record.screen = make_screen(head, self.order_d, arena, rounded=self.rounded)

    def fill_ends(self, record: records.Model, arena: Arena) -> Tensor:
        """Fill in what is not packed, and return the embedding, which must stay alive."""
        embedding = self.reader.embedding()
        rounded = embedding.bfloat16()  # itself, if it is
        record.embedding = rounded.data_ptr() if rounded is embedding else arena.keep(rounded)
        record.final_gain = arena.put(self.reader.gain("norm"))
        return embedding

    def _pack(self, arena: Arena, weight: Tensor, scales: Tensor | None) -> records.Matrix:
        if scales is not None:
            return records.Matrix(panels=arena.pack_int8(weight), scales=arena.put(scales))
        if self.rounded:
            return records.Matrix(panels=arena.pack_rounded(weight), rounded=1)
        if self.codes and (coded := arena.pack_coded(weight)):
            address, stride = coded
            return records.Matrix(panels=address, coded_stride=stride)
        return records.Matrix(panels=arena.pack(weight))


def _as_they_are(sides: Sequence[Tensor]) -> Tensor:
    """Return the outputs of a place that is not joined with others."""
    (only,) = sides
    return only


def _pair_halves(sides: Sequence[Tensor], *, pairs: int) -> Tensor:
    """Put 16 outputs of a head's first half beside the 16 that they are rotated with."""
    joined = torch.cat(list(sides))
    heads = joined.view(-1, 2, pairs // 16, 16, *joined.shape[1:])
    return heads.transpose(1, 2).reshape(joined.shape)


def _take_turns(sides: Sequence[Tensor]) -> Tensor:
    """Put 16 outputs of one beside 16 of the other."""
    blocks = [side.view(-1, 16, *side.shape[1:]) for side in sides]
    return torch.stack(blocks, dim=1).reshape(-1, *sides[0].shape[1:])
