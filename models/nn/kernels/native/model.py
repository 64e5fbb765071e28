"""A frozen Llama-shaped network as the C++ step reads it: packed, joined, with angles by position.

Only what is computed exactly so is admitted here; whether the result is right is for a probe to
say. Shapes: K key heads, C positions of a slot, h head dimension, d hidden, V vocabulary, o out.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.kernels.native import INPUT_STEP, Library, packs, records
from models.nn.kernels.native.arena import Arena
from models.nn.kernels.native.packer import Packer
from models.nn.kernels.native.reader import Reader
from models.nn.kernels.native.screen import largest_first
from models.nn.shape import HEAD, path_of

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
    """The embedding and the cache, or the model with which what did not change is shared."""
    slots: int
    """Of the cache."""
    packer: Packer

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
        arena = Arena(library, chunk=_CHUNK)
        order_d = largest_first(backbone) if screens else None
        packer = Packer(Reader.of(backbone), library, codes, rounded, order_d)
        layers = (records.Layer * backbone.shape.layers)()
        for index, sides in enumerate(zip(keys, values, strict=True)):
            layers[index].keys, layers[index].values = (side.data_ptr() for side in sides)
            packer.fill_layer(layers[index], arena, layer=index)
        shape, positions = backbone.shape, keys[0].shape[2]
        cosines, sines = _angles(backbone, positions)
        record = records.Model(
            layers=records.address(layers),
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
            epsilon=backbone.network.get_submodule(path_of("norm")).eps,
            scale=float(backbone.network.get_submodule(path_of("layers.0.self_attn")).scaling),
        )
        packer.fill_head(record, arena)
        embedding = packer.fill_ends(record, arena)
        return cls(record, layers, arena, (embedding, *keys, *values), len(keys[0]), packer)

    @torch.no_grad()
    def over(self, weights: Mapping[str, Tensor]) -> "StepModel":
        """Pack the same network with other parameters, by their names in it; any thread may.

        What they leave as it was is shared.
        """
        packer = replace(self.packer, reader=self.packer.reader.over(weights))
        size = sum(weight.numel() * torch.bfloat16.itemsize for weight in weights.values())
        arena = Arena(packer.library, chunk=min(_CHUNK, size))
        layers = type(self.layers).from_buffer_copy(self.layers)
        for index in range(self.record.depth):
            if packer.reader.changes(f"layers.{index}", weights):
                packer.fill_layer(layers[index], arena, layer=index)
        record = records.Model.from_buffer_copy(self.record)
        record.layers = records.address(layers)
        if packer.reader.changes(HEAD, weights):
            packer.fill_head(record, arena)
        embedding = packer.fill_ends(record, arena)
        return replace(
            self,
            record=record,
            layers=layers,
            arena=arena,
            held=(embedding, self),
            packer=packer,
        )


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
