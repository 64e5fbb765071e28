"""A frozen Llama-shaped network as the C++ step reads it: packed, joined, with angles by position.

Only what is computed exactly so is admitted here; whether the result is right is for a probe to
say. Shapes: K key heads, C positions of a slot, h head dimension, d hidden, V vocabulary, o out.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.kernels.native import INPUT_STEP, Library, packs, records
from models.nn.kernels.native.arena import Arena
from models.nn.kernels.native.screen import make_screen
from models.nn.quantized import is_packed
from models.nn.shape import HEAD, path_of
from models.nn.weight_only import scales_of

Order = Callable[[Sequence[Tensor]], Tensor]
"""How the outputs of places lie in one matrix."""
Packing = Callable[[Tensor, Tensor | None], records.Matrix]
"""Keeps a weight, and the scales of its outputs if it is in 8 bits."""

FAMILIES = frozenset({"llama", "mistral", "qwen2"})
ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary scalings whose angles depend on the position alone."""
LARGEST_HEAD = 256
_CHUNK = 32 * 1024 * 1024
_DTYPES = (torch.bfloat16, torch.float32)
"""Of the network; rows and cache of the step are in bfloat16 in any case."""


class Unsuited(Exception):
    """Why something is not computed by the C++ step."""


@dataclass(frozen=True)
class StepModel:
    """What `gw_step` takes as its model, and what must stay alive for it."""

    record: records.Model
    layers: ctypes.Array[records.Layer]
    arena: Arena
    held: tuple[Any, ...]
    """The embedding and the cache."""
    slots: int
    """Of the cache."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        backbone: Backbone,
        library: Library,
        *,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        codes: bool = False,
        rounded: bool = False,
        screens: bool = False,
    ) -> "StepModel":
        """Pack a network for a cache of (R, K, C, h) a layer; `Unsuited` says what stands against.

        The packed weights are a copy: the network goes on to serve what the step does not do.
        With `codes` those in bfloat16 take 12 bits each where that is possible, without loss; every
        form of the step reads them, and that by AVX2 alone does not gain by it. With `rounded` they
        are in block floating point instead, which that form alone reads. With `screens` the
        likeliest tokens are told by a head in 8 bits first, where the head is a plain one.
        """
        _require_llama(backbone, keys)
        arena, reader = Arena(library, chunk=_CHUNK), _Reader(backbone)
        pack = partial(_pack, arena, codes=codes, rounded=rounded)
        layers = (records.Layer * backbone.shape.layers)()
        for index, sides in enumerate(zip(keys, values, strict=True)):
            _fill_layer(layers[index], reader, arena, pack, layer=index, sides=sides)
        embedding = backbone.network.get_input_embeddings().weight.bfloat16()
        shape, positions = backbone.shape, keys[0].shape[2]
        cosines, sines = _angles(backbone, positions)
        head, head_scales = reader.joined([HEAD], order=_as_they_are)
        head_bias = arena.put(reader.bias(HEAD))
        screens = screens and head_scales is None and head_bias is None
        record = records.Model(
            layers=records.address(layers),
            embedding=embedding.data_ptr(),
            head=pack(head, head_scales),
            screen=make_screen(backbone, head, arena, rounded=rounded)
            if screens
            else records.Screen(),
            head_bias=head_bias,
            final_gain=arena.put(backbone.base.gain("norm")),
            cosines=arena.put(cosines),
            sines=arena.put(sines),
            depth=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            key_heads=shape.kv_heads,
            head_size=shape.head_dim,
            inner=shape.linears["layers.0.mlp.gate_proj"][0],
            vocabulary=shape.vocab,
            positions=positions,
            epsilon=reader.module("norm").eps,
            scale=float(reader.module("layers.0.self_attn").scaling),
        )
        return cls(record, layers, arena, (embedding, *keys, *values), len(keys[0]))


class _Reader:
    """Finds the leaves of a network by place."""

    def __init__(self, backbone: Backbone) -> None:
        self._network = backbone.network
        self.shape = backbone.shape

    def module(self, place: str) -> Any:
        return self._network.get_submodule(path_of(place))

    def joined(self, places: Sequence[str], *, order: Order) -> tuple[Tensor, Tensor | None]:
        """Return the weights of places as one, and the scales of its outputs if it is in 8 bits."""
        weights = [self.module(place).weight for place in places]
        joined = order([weight.detach() for weight in weights])
        scales = [scales_of(weight) for weight in weights if is_packed(weight)]
        return joined, order(scales) if scales else None

    def bias(self, place: str) -> Tensor | None:
        bias: Tensor | None = self.module(place).bias
        return None if bias is None else bias.detach()

    def biases(self, places: Sequence[str]) -> list[Tensor] | None:
        """Return the biases of places that are joined, zeros where one has none, or None."""
        found = [self.bias(place) for place in places]
        if all(bias is None for bias in found):
            return None
        return [
            torch.zeros(self.shape.linears[place][0]) if bias is None else bias.float()
            for place, bias in zip(places, found, strict=True)
        ]


def _fill_layer(
    record: records.Layer,
    reader: _Reader,
    arena: Arena,
    pack: Packing,
    *,
    layer: int,
    sides: tuple[Tensor, Tensor],
) -> None:
    names = [f"layers.{layer}.self_attn.{name}" for name in records.PLACES[:4]]
    names += [f"layers.{layer}.mlp.{name}" for name in records.PLACES[4:]]
    heads, feed = names[:3], names[4:6]
    pair_halves = partial(_pair_halves, pairs=reader.shape.head_dim // 2)
    record.qkv = pack(*reader.joined(heads, order=pair_halves))
    record.o = pack(*reader.joined(names[3:4], order=_as_they_are))
    record.gate_up = pack(*reader.joined(feed, order=_take_turns))
    record.down = pack(*reader.joined(names[6:], order=_as_they_are))
    if (biases := reader.biases(heads)) is not None:
        record.qkv_bias = arena.put(pair_halves(biases))
    record.o_bias = arena.put(reader.bias(names[3]))
    if (biases := reader.biases(feed)) is not None:
        record.gate_up_bias = arena.put(_take_turns(biases))
    record.down_bias = arena.put(reader.bias(names[6]))
    for index, norm in enumerate(records.NORMS):
        record.gains[index] = arena.put(reader.module(f"layers.{layer}.{norm}").gain_d)
    record.keys, record.values = (side.data_ptr() for side in sides)


def _pack(
    arena: Arena, weight: Tensor, scales: Tensor | None, *, codes: bool, rounded: bool
) -> records.Matrix:
    if scales is not None:
        return records.Matrix(panels=arena.pack_int8(weight), scales=arena.put(scales))
    if rounded:
        return records.Matrix(panels=arena.pack_rounded(weight), rounded=1)
    if codes and (coded := arena.pack_coded(weight)):
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


def _angles(backbone: Backbone, positions: int) -> tuple[Tensor, Tensor]:
    """Return (C, h / 2) cosines and sines as the network's own module gives them, unrounded."""
    probe = torch.zeros(1, dtype=torch.float32)
    cosines, sines = backbone.network.model.rotary_emb(probe, torch.arange(positions)[None])
    half = backbone.shape.head_dim // 2
    if cosines.shape[-1] != 2 * half or not torch.equal(cosines[..., :half], cosines[..., half:]):
        raise Unsuited("heads are rotated in another way")
    return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()


def _require_llama(backbone: Backbone, keys: Sequence[Tensor]) -> None:
    """Raise `Unsuited` unless the network is of the one shape that the step computes."""
    config, shape = backbone.config, backbone.shape
    if config.model_type not in FAMILIES:
        raise Unsuited(f"the base is of type {config.model_type}")
    if backbone.device.type != "cpu" or backbone.dtype not in _DTYPES:
        raise Unsuited(f"the base computes in {backbone.dtype} on {backbone.device}")
    if keys[0].dtype is not torch.bfloat16 or not all(side.is_contiguous() for side in keys):
        raise Unsuited(f"the cache is of another kind, in {keys[0].dtype}")
    blocks = [backbone.network.get_submodule(f"model.layers.{i}") for i in range(shape.layers)]
    windows = [getattr(block.self_attn, "sliding_window", None) for block in blocks]
    if any(window is not None for window in windows):
        raise Unsuited("it attends in a window")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise Unsuited(f"its activation is {config.hidden_act}")
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in ROTATIONS:
        raise Unsuited(f"its rotary embedding is {rotation}")
    if shape.head_dim % INPUT_STEP or shape.head_dim > LARGEST_HEAD:
        raise Unsuited(f"its heads have {shape.head_dim} dimensions")
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 48:
        raise Unsuited(f"{shape.heads} heads share {shape.kv_heads}")
    for place, size in shape.linears.items():
        leaf = backbone.network.get_submodule(path_of(place))
        if not packs(*size) or leaf.weight.dtype not in (backbone.dtype, torch.int8):
            raise Unsuited(f"{place} is {size[0]} x {size[1]} in {leaf.weight.dtype}")
    if set(shape.linears) != set(_llama_places(shape.layers)):
        raise Unsuited("it has other linear places than a Llama")


def _llama_places(layers: int) -> list[str]:
    attention = [f"self_attn.{name}" for name in records.PLACES[:4]]
    feed = [f"mlp.{name}" for name in records.PLACES[4:]]
    return [f"layers.{i}.{place}" for i in range(layers) for place in attention + feed] + [HEAD]
