"""What methods see of the frozen base: its weights as they act, and what it makes of given rows.

Shapes: T rows of ids, d hidden, p rows of a prompt or prefix, K key and value heads, h head
dimension.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.attention import Recording
from models.nn.executors import NOBODY
from models.nn.leaves import act_in, is_offset, rms
from models.nn.quantized import unpack
from models.nn.shape import Shape, path_of
from models.nn.terms import LinearTerm


@dataclass(frozen=True)
class Base:
    """A read-only view of the frozen base for methods; tensors come in float32."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    _network: Any
    _row_squares: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def apart(self) -> "Base":
        """Return the same view for another thread, without a copy of a weight.

        `Backbone.using` puts other parameters into the network while it computes; the modules
        behind this view never see them.
        """
        tensors = (*self._network.parameters(), *self._network.buffers())
        twin = copy.deepcopy(self._network, {id(tensor): tensor for tensor in tensors})
        return replace(self, _network=twin, _row_squares={})

    def weight(self, place: str) -> Tensor:
        """Return the (out, in) weight of a linear place; one that is quantised, as it acts."""
        return unpack(self._module(place).weight, dtype=self.dtype).float()

    def bias(self, place: str) -> Tensor | None:
        """Return the (out,) bias of a linear place, if it has one."""
        bias = self._module(place).bias
        return None if bias is None else bias.detach().float()

    def row_squares(self, place: str) -> Tensor:
        """Return (out,): the squared norm of each row of a linear weight, kept once made."""
        if place not in self._row_squares:
            self._row_squares[place] = self.weight(place).pow(2).sum(1)
        return self._row_squares[place]

    def gain(self, place: str) -> Tensor:
        """Return the (d,) gain by which a norm multiplies, its family's offset included."""
        gain: Tensor = self._module(place).gain_d
        return gain

    def parameter(self, name: str) -> Tensor:
        """Return a parameter by its name in the network, as the network holds it."""
        parameter: Tensor = self._network.get_parameter(name).detach().float()
        return parameter

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return (T, d): what the network's layers would be given for these ids (T,) int64."""
        embedded_td: Tensor = self._network.get_input_embeddings()(token_ids)
        return embedded_td.detach().float()

    def project_keys_values(
        self, layer: int, rows_pd: Tensor, *, linears: Mapping[str, LinearTerm] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (K, p, h) twice: what a layer makes of rows (p, d), float32 and differentiable.

        Keys are normalised where the family does so, and not rotated. The output scales and biases
        of `linears`, by place, act on the projections.
        """
        block = f"layers.{layer}.self_attn"
        key_pe, value_pe = (
            self._project(f"{block}.{part}", rows_pd, linears=linears or {})
            for part in ("k_proj", "v_proj")
        )
        keys_pkh, values_pkh = (
            side.view(-1, self.shape.kv_heads, self.shape.head_dim) for side in (key_pe, value_pe)
        )
        norm = getattr(self._module(block), "k_norm", None)
        if norm is not None:
            gain_h = norm.weight.detach().float() + (1.0 if is_offset(norm) else 0.0)
            keys_pkh = rms(keys_pkh, norm) * gain_h
        return keys_pkh.transpose(0, 1), values_pkh.transpose(0, 1)

    @torch.no_grad()
    def keys_values(self, token_ids: Tensor, *, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (K, p, h) twice for every layer: what a cache keeps of ids (p,) int64, float32.

        Keys are rotated by `positions` (p,) int64; at position 0 a rotation changes nothing.
        """
        recording = Recording([(0, len(token_ids))])
        ids_1t, positions_1t = (each.to(self.device)[None] for each in (token_ids, positions))
        with act_in(NOBODY, recording):
            self._network.model(input_ids=ids_1t, position_ids=positions_1t, use_cache=False)
        sides = zip(recording.keys, recording.values, strict=True)
        return [(keys.float(), values.float()) for keys, values in sides]

    def _project(self, place: str, rows_pd: Tensor, *, linears: Mapping[str, LinearTerm]) -> Tensor:
        """Return rows through a linear place, or through its slice of a fused one."""
        block, _, part = place.rpartition(".")
        held, rows = place, slice(None)
        if place not in self.shape.linears:
            held = f"{block}.qkv_proj"
            rows = slice(*self.shape.parts[held][part])
        bias, term = self.bias(held), linears.get(held)
        projected = F.linear(rows_pd, self.weight(held)[rows], None if bias is None else bias[rows])
        if term is not None and term.output_scale is not None:
            projected = projected * term.output_scale[rows].to(projected)
        if term is not None and term.bias is not None:
            projected = projected + term.bias[rows].to(projected)
        return projected

    def _module(self, place: str) -> Any:
        return self._network.get_submodule(path_of(place))
