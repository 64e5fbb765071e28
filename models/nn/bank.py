"""The adapters of one batch joined: concatenated low-rank terms and tables of vectors.

Shapes: T rows, i in features, o out features, R sum of the ranks at a place, n slots (adapters
and, as slot 0, the base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.nn.terms import LinearTerm, Terms

if TYPE_CHECKING:
    from models.nn.terms import OpenForm


@dataclass(frozen=True)
class Layout:
    """Which slot owns each column of concatenated low-rank terms, and its scale; hashable."""

    columns: tuple[tuple[int, int, float], ...]
    """(slot, rank, scale) in order."""

    def weight(self, slots_t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (T, R): the scale where the row's slot owns the column, else 0."""
        owners = [slot for slot, rank, _ in self.columns for _ in range(rank)]
        scales = [scale for _, rank, scale in self.columns for _ in range(rank)]
        owners_r = torch.tensor(owners, device=slots_t.device)
        scales_r = torch.tensor(scales, device=slots_t.device, dtype=dtype)
        return (slots_t[:, None] == owners_r).to(dtype) * scales_r


@dataclass(frozen=True)
class PlaceBank:
    """All adapters at one place; unused rows of vector tables, and row 0, change nothing."""

    layout: Layout | None = None
    down_ri: Tensor | None = None
    up_or: Tensor | None = None
    input_scale_ni: Tensor | None = None
    output_scale_no: Tensor | None = None
    bias_no: Tensor | None = None
    functions: tuple[tuple[int, OpenForm], ...] = ()

    @classmethod
    def of(cls, terms: Mapping[int, LinearTerm], *, slots: int) -> PlaceBank:
        """Join the terms of the slots that have one; `slots` counts slot 0, the base, too."""
        bank = cls(
            input_scale_ni=_table(terms, "input_scale", slots=slots, fill=1.0),
            output_scale_no=_table(terms, "output_scale", slots=slots, fill=1.0),
            bias_no=_table(terms, "bias", slots=slots, fill=0.0),
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


def _table(
    terms: Mapping[int, LinearTerm], vector: str, *, slots: int, fill: float
) -> Tensor | None:
    rows: dict[int, Tensor | None] = {slot: getattr(term, vector) for slot, term in terms.items()}
    given = {slot: row for slot, row in rows.items() if row is not None}
    if not given:
        return None
    table_nf = next(iter(given.values())).new_full((slots, *next(iter(given.values())).shape), fill)
    for slot, row in given.items():
        table_nf[slot] = row
    return table_nf


@dataclass(frozen=True)
class Bank:
    """The active adapters' terms, joined per place; made anew when the active set changes."""

    places: Mapping[str, PlaceBank]
    slots: int

    @classmethod
    @torch.no_grad()
    def of(cls, terms: Sequence[Terms]) -> Bank:
        """Join adapters of one dtype and device; slot i + 1 is `terms[i]`, slot 0 the base."""
        by_place: dict[str, dict[int, LinearTerm]] = {}
        for slot, adapter in enumerate(terms, start=1):
            for place, term in adapter.items():
                by_place.setdefault(place, {})[slot] = term
        slots = len(terms) + 1
        places = {place: PlaceBank.of(held, slots=slots) for place, held in by_place.items()}
        return cls(places, slots)
