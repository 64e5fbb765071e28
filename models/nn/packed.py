"""The executor that decodes: every row by the adapter in its slot, all at once.

Shapes: T rows, i in features, o out features, d hidden, H query heads, h head dimension.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.bank import AttentionBank, Bank, Layout
from models.nn.joint import Joint
from models.nn.kernels import ops


@dataclass(frozen=True)
class Packed:
    """Two products a place, some gathers, and a mask that keeps adapters apart.

    Rows are not isolated from a neighbour's NaN, so adapters are checked when loaded.
    """

    bank: Bank
    slots_t: Tensor
    """(T,) int64, 0 for rows of the base."""
    _weights: dict[Layout, Tensor] = field(default_factory=dict, repr=False)
    _visible: dict[Layout, Tensor] = field(default_factory=dict, repr=False)
    _gains: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def linear_input(self, place: str, x_ti: Tensor) -> Tensor:
        """See `Executor.linear_input`."""
        held = self.bank.linears.get(place)
        if held is None or held.input_scale_ni is None:
            return x_ti
        return ops(x_ti.device).row_scale(x_ti, table_ni=held.input_scale_ni, rows_t=self.slots_t)

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor) -> Tensor:
        """See `Executor.linear`."""
        held = self.bank.linears.get(place)
        if held is None:
            return y_to
        for slot, weight_oi in held.weights:
            rows_n = self._rows(slot)
            y_to = y_to.index_copy(0, rows_n, F.linear(x_ti[rows_n], weight_oi))
        if held.layout and held.down_ri is not None and held.up_or is not None:
            weight_tr = self._weight(held.layout)
            y_to = ops(y_to.device).low_rank(
                y_to, x_ti, down_ri=held.down_ri, up_or=held.up_or, weight=weight_tr
            )
        if held.output_scale_no is not None:
            y_to = ops(x_ti.device).row_scale(
                y_to, table_ni=held.output_scale_no, rows_t=self.slots_t
            )
        if held.bias_no is not None:
            y_to = ops(y_to.device).row_shift(y_to, table_ni=held.bias_no, rows_t=self.slots_t)
        for slot, function in held.functions:
            rows_n = self._rows(slot)
            if len(rows_n):
                y_to = y_to.index_copy(0, rows_n, function(x_ti[rows_n], y_to[rows_n]))
        return y_to

    def project(self, joint: Joint, x_ti: Tensor) -> Tensor:
        """See `Executor.project`."""
        held = [self.bank.linears.get(place) for place in joint.places]
        product = ops(x_ti.device).project
        if any(one is not None and one.input_scale_ni is not None for one in held):
            inputs = [self.linear_input(place, x_ti) for place in joint.places]
            products = [
                product(own_ti, weight=one.weight)
                for one, own_ti in zip(joint.each, inputs, strict=True)
            ]
        else:
            y_to = product(x_ti, weight=joint.weight)
            if not any(held):
                return y_to
            inputs = [x_ti] * len(held)
            products = [y_to[:, slice(*columns)] for columns in joint.columns]
        changed = map(self.linear, joint.places, inputs, products)
        return torch.cat(list(changed), dim=1)

    def acts(self, place: str) -> bool:
        """See `Executor.acts`."""
        return place in self.bank.linears

    def gain(self, place: str, gain_d: Tensor, *, rows: int) -> Tensor:  # noqa: ARG002
        """See `Executor.gain`."""
        held = self.bank.norms.get(place)
        if held is None:
            return gain_d
        if place not in self._gains:
            self._gains[place] = held.table(gain_d)
        return self._gains[place][self.slots_t]

    def hidden(self, place: str, x_td: Tensor, y_td: Tensor) -> Tensor:
        """See `Executor.hidden`; each row has one adapter, so all may read the same output."""
        output_td = y_td
        for held in self.bank.hiddens.get(place, ()):
            y_td = ops(y_td.device).bottleneck(
                y_td,
                output_td if held.reads == "output" else x_td,
                down_md=held.down_md,
                down_bias_m=held.down_bias_m,
                activation=held.activation,
                up_dm=held.up_dm,
                weight=self._weight(held.layout),
            )
            y_td = ops(y_td.device).row_shift(y_td, table_ni=held.up_bias_nd, rows_t=self.slots_t)
        return y_td

    def attention(
        self, layer: int, query_hth: Tensor, output_thh: Tensor, *, scale: float
    ) -> Tensor:
        """See `Executor.attention`."""
        held = self.bank.attentions.get(layer)
        if held is None:
            return output_thh
        return ops(output_thh.device).gated_attention(
            output_thh,
            query_hth,
            keys_kph=held.keys_kph,
            values_kph=held.values_kph,
            gate=held.gate_nh[self.slots_t],
            scale=scale,
            visible_tp=self._visible_keys(held),
        )

    def at(self, rows_n: Tensor) -> "Packed":
        """See `Executor.at`."""
        return Packed(self.bank, self.slots_t[rows_n])

    def _rows(self, slot: int) -> Tensor:
        return (self.slots_t == slot).nonzero()[:, 0]

    def _weight(self, layout: Layout) -> Tensor:
        if layout not in self._weights:
            self._weights[layout] = layout.weight(self.slots_t)
        return self._weights[layout]

    def _visible_keys(self, held: AttentionBank) -> Tensor:
        if held.layout not in self._visible:
            self._visible[held.layout] = held.visible(self.slots_t)
        return self._visible[held.layout]
