"""The adapters of one batch joined: concatenated products and tables of vectors.

Shapes: T rows, i in features, o out features, R sum of the ranks at a place, n slots (adapters
and, as slot 0, the base), d hidden, M sum of the bottlenecks, K key heads, P sum of the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from models.nn.terms import Activation, AttentionTerm, HiddenTerm, LinearTerm, Terms

if TYPE_CHECKING:
    from models.nn.terms import OpenForm

KeyT = TypeVar("KeyT")
TermT = TypeVar("TermT")


@dataclass(frozen=True)
class Layout:
    """Which slot owns each column of concatenated terms, and its scale; hashable."""

    columns: tuple[tuple[int, int, float], ...]
    """(slot, width, scale) in order."""

    def weight(self, slots_t: Tensor) -> Tensor:
        """Return (T, R) float32: the scale where the row's slot owns the column, else 0."""
        scales = [scale for _, width, scale in self.columns for _ in range(width)]
        return self.owned(slots_t) * torch.tensor(scales, device=slots_t.device)

    def owned(self, slots_t: Tensor) -> Tensor:
        """Return (T, R) bool: whether the row's slot owns the column."""
        owners = [slot for slot, width, _ in self.columns for _ in range(width)]
        return slots_t[:, None] == torch.tensor(owners, device=slots_t.device)


@dataclass(frozen=True)
class PlaceBank:
    """All adapters at one linear place; unused rows of vector tables, and row 0, change nothing."""

    layout: Layout | None = None
    down_ri: Tensor | None = None
    up_or: Tensor | None = None
    input_scale_ni: Tensor | None = None
    output_scale_no: Tensor | None = None
    bias_no: Tensor | None = None
    weights: tuple[tuple[int, Tensor], ...] = ()
    functions: tuple[tuple[int, OpenForm], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[int, LinearTerm], *, slots: int) -> PlaceBank:
        """Join the terms of the slots that have one; `slots` counts slot 0, the base, too."""
        bank = cls(
            input_scale_ni=_table(terms, "input_scale", slots=slots, fill=1.0),
            output_scale_no=_table(terms, "output_scale", slots=slots, fill=1.0),
            bias_no=_table(terms, "bias", slots=slots, fill=0.0),
            weights=tuple(
                (slot, term.weight) for slot, term in terms.items() if term.weight is not None
            ),
            functions=tuple(
                (slot, term.function) for slot, term in terms.items() if term.function is not None
            ),
        )
        low = [
            (slot, term.down, term.up, term.scale)
            for slot, term in terms.items()
            if term.down is not None and term.up is not None
        ]
        if not low:
            return bank
        return replace(
            bank,
            layout=Layout(tuple((slot, len(down), scale) for slot, down, _, scale in low)),
            down_ri=torch.cat([down for _, down, _, _ in low]),
            up_or=torch.cat([up for _, _, up, _ in low], dim=1).contiguous(),
        )


@dataclass(frozen=True)
class BottleneckBank:
    """All bottlenecks at one sublayer that have one activation and read one side."""

    activation: Activation
    reads: Literal["output", "input"]
    layout: Layout
    down_md: Tensor
    down_bias_m: Tensor
    up_dm: Tensor
    up_bias_nd: Tensor
    """The scale included."""

    @classmethod
    def of(cls, terms: Mapping[int, HiddenTerm], *, slots: int) -> tuple[BottleneckBank, ...]:
        """Join the terms of the slots that have one, those that are alike together."""
        alike: dict[tuple[Activation, Any], dict[int, HiddenTerm]] = {}
        for slot, term in terms.items():
            alike.setdefault((term.activation, term.reads), {})[slot] = term
        return tuple(
            cls(
                activation=activation,
                reads=reads,
                layout=Layout(tuple((s, len(term.down), term.scale) for s, term in held.items())),
                down_md=torch.cat([term.down for term in held.values()]),
                down_bias_m=torch.cat([term.down_bias for term in held.values()]),
                up_dm=torch.cat([term.up for term in held.values()], dim=1).contiguous(),
                up_bias_nd=_fill_rows(
                    {slot: term.scale * term.up_bias for slot, term in held.items()},
                    slots=slots,
                    fill=0.0,
                ),
            )
            for (activation, reads), held in alike.items()
        )


@dataclass(frozen=True)
class AttentionBank:
    """All second attentions of one layer; column 0 is a key for rows that own none."""

    layout: Layout
    keys_kph: Tensor
    values_kph: Tensor
    gate_nh: Tensor

    @classmethod
    def of(cls, terms: Mapping[int, AttentionTerm], *, slots: int) -> AttentionBank:
        """Join the terms of the slots that have one."""
        keys = [term.keys for term in terms.values()]
        values = [term.values for term in terms.values()]
        null = keys[0].new_zeros(keys[0].shape[0], 1, keys[0].shape[2])
        columns = tuple((slot, term.keys.shape[1], 1.0) for slot, term in terms.items())
        return cls(
            layout=Layout(((-1, 1, 1.0), *columns)),
            keys_kph=torch.cat([null, *keys], dim=1),
            values_kph=torch.cat([null, *values], dim=1),
            gate_nh=_fill_rows(
                {slot: term.gate for slot, term in terms.items()}, slots=slots, fill=0.0
            ),
        )

    def visible(self, slots_t: Tensor) -> Tensor:
        """Return (T, 1 + P) bool: a row sees its own keys, or the null key if it has none."""
        visible_tp = self.layout.owned(slots_t)
        visible_tp[:, 0] = ~visible_tp.any(dim=1)
        return visible_tp


@dataclass(frozen=True)
class NormBank:
    """The gains of one norm; a slot without one takes the base's."""

    gains: Mapping[int, Tensor]
    slots: int

    def table(self, gain_d: Tensor) -> Tensor:
        """Return (n, d) float32."""
        table_nd = gain_d.repeat(self.slots, 1)
        for slot, own_d in self.gains.items():
            table_nd[slot] = own_d
        return table_nd


def _table(
    terms: Mapping[int, LinearTerm], vector: str, *, slots: int, fill: float
) -> Tensor | None:
    rows: dict[int, Tensor | None] = {slot: getattr(term, vector) for slot, term in terms.items()}
    given = {slot: row for slot, row in rows.items() if row is not None}
    return _fill_rows(given, slots=slots, fill=fill) if given else None


def _fill_rows(given: Mapping[int, Tensor], *, slots: int, fill: float) -> Tensor:
    """Return (n, f) of `fill` with the given rows."""
    first = next(iter(given.values()))
    table_nf = first.new_full((slots, *first.shape), fill)
    for slot, row in given.items():
        table_nf[slot] = row
    return table_nf


@dataclass(frozen=True)
class Bank:
    """The active adapters' terms, joined per place; made anew when the active set changes."""

    linears: Mapping[str, PlaceBank]
    hiddens: Mapping[str, tuple[BottleneckBank, ...]]
    attentions: Mapping[int, AttentionBank]
    norms: Mapping[str, NormBank]
    slots: int

    @classmethod
    @torch.no_grad()
    def of(cls, terms: Sequence[Terms]) -> Bank:
        """Join adapters of one dtype and device; slot i + 1 is `terms[i]`, slot 0 the base.

        ValueError for one that replaces the network's own weights: it cannot share a batch.
        """
        return cls.of_slots(dict(enumerate(terms, start=1)), slots=len(terms) + 1)

    @classmethod
    @torch.no_grad()
    def of_slots(cls, terms: Mapping[int, Terms], *, slots: int) -> Bank:
        """Join adapters by the slots that they have; see `of`."""
        if any(adapter.weights for adapter in terms.values()):
            raise ValueError("An adapter of whole weights cannot share a batch.")
        linears = _by_place({slot: adapter.linears for slot, adapter in terms.items()})
        hiddens = _by_place({slot: adapter.hiddens for slot, adapter in terms.items()})
        attentions = _by_place({slot: adapter.attentions for slot, adapter in terms.items()})
        norms = _by_place({slot: adapter.norms for slot, adapter in terms.items()})
        return cls(
            {place: PlaceBank.of(held, slots=slots) for place, held in linears.items()},
            {place: BottleneckBank.of(held, slots=slots) for place, held in hiddens.items()},
            {layer: AttentionBank.of(held, slots=slots) for layer, held in attentions.items()},
            {
                place: NormBank({slot: term.gain for slot, term in held.items()}, slots)
                for place, held in norms.items()
            },
            slots,
        )


def _by_place(adapters: Mapping[int, Mapping[KeyT, TermT]]) -> dict[KeyT, dict[int, TermT]]:
    """Turn terms by place of each slot into terms by slot of each place."""
    found: dict[KeyT, dict[int, TermT]] = {}
    for slot, held in adapters.items():
        for place, term in held.items():
            found.setdefault(place, {})[slot] = term
    return found
