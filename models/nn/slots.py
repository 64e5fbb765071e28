"""Adapters of one batch that come and go: a newcomer is copied into free columns, nobody moves.

Shapes: C columns of capacity, U of them in use, i in features, o out features, n slots.
"""

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.nn.bank import Bank, Layout, PlaceBank
from models.nn.terms import LinearTerm, Terms

COLUMNS = 1024
"""Columns reserved at a place on a CPU, where memory costs nothing until it is written."""
FEWEST_COLUMNS = 64
FEWEST_SLOTS = 64
WASTE = 2
"""How many times the cost of those who are needed may be paid before others leave."""
VECTORS = {"input_scale": 1.0, "output_scale": 1.0, "bias": 0.0}
"""The vectors of a linear term, and what changes nothing."""


@dataclass(frozen=True)
class Held:
    """Who has a slot: its terms, and the columns [start, stop) that it has at every place."""

    slot: int
    terms: Terms
    start: int
    width: int
    cost: int
    """What it adds to every step, whoever is in it; see `_cost`."""
    scales: Mapping[str, float | None]
    """Of its low-rank terms, by place."""

    @property
    def stop(self) -> int:
        """Behind its last column."""
        return self.start + self.width


class Slots:
    """What a bank holds, changed one adapter at a time; slot 0 is the base."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._places: dict[str, _Place] = {}
        self._bank: Bank | None = None

    def __len__(self) -> int:
        """Return how many adapters have a slot."""
        return len(self._held)

    def hold(self, needed: Mapping[str, Terms]) -> tuple[Bank, Mapping[str, int]]:
        """Return a bank with these adapters, by digest, and not many more; and their slots.

        They have one dtype and device. ValueError for one that replaces the network's own weights:
        it cannot share a batch. A bank stays right until the next call.
        """
        fresh = {d: _cost(needed[d]) for d in sorted(needed.keys() - self._held.keys())}
        stale = self._held.keys() - needed.keys()
        wanted = sum(fresh.values()) + sum(self._held[d].cost for d in needed if d not in fresh)
        if sum(self._held[digest].cost for digest in stale) > (WASTE - 1) * wanted:
            for digest in stale:
                self.drop(digest)
        for digest, cost in fresh.items():
            self._admit(digest, needed[digest], cost)
        if not fresh and self._is_sparse(needed):
            self._move_last()
        if self._bank is None:
            self._bank = self._make()
        return self._bank, {digest: one.slot for digest, one in self._held.items()}

    def drop(self, digest: str) -> None:
        """Free an adapter's slot; one that has none is fine."""
        if (held := self._held.pop(digest, None)) is None:
            return
        self._bank = None
        for name, term in held.terms.linears.items():
            self._places[name].clear(held.slot, term)

    @property
    def _used(self) -> int:
        return max((one.stop for one in self._held.values()), default=0)

    def _is_sparse(self, needed: Iterable[str]) -> bool:
        """Say whether far more low-rank columns are computed than some adapters have."""
        own = sum(self._held[digest].width for digest in needed)
        return self._used > WASTE * own + FEWEST_COLUMNS

    def _admit(self, digest: str, terms: Terms, cost: int) -> None:
        if terms.weights:
            raise ValueError("An adapter of whole weights cannot share a batch.")
        taken = {one.slot for one in self._held.values()}
        slot = next(number for number in range(1, len(taken) + 2) if number not in taken)
        width = _width(terms)
        scales = {name: _scale(term) for name, term in terms.linears.items()}
        self._put(digest, Held(slot, terms, self._find(width), width, cost, scales))

    def _put(self, digest: str, held: Held) -> None:
        for name, term in held.terms.linears.items():
            self._places.setdefault(name, _Place()).put(held, term)
        self._held[digest] = held
        self._bank = None

    def _find(self, width: int) -> int:
        """Return where the first gap of this width begins."""
        start = 0
        for one in sorted(self._held.values(), key=lambda one: one.start):
            if one.width and one.start - start >= width:
                break
            start = max(start, one.stop)
        return start

    def _move_last(self) -> None:
        """Let the last one take a gap before it, so that fewer columns are computed."""
        digest, last = max(self._held.items(), key=lambda item: item[1].stop)
        start = self._find(last.width)
        if start < last.start:
            self._put(digest, replace(last, start=start))

    def _make(self) -> Bank:
        acting = {one.slot: one.terms for one in self._held.values()}
        ordered = sorted(self._held.values(), key=lambda one: one.start)
        slots = max(acting, default=0) + 1
        layouts: dict[tuple[float | None, ...], Layout] = {}
        linears = {}
        for name in dict.fromkeys(name for terms in acting.values() for name in terms.linears):
            scales = tuple([one.scales.get(name) for one in ordered])
            if scales not in layouts:
                layouts[scales] = _lay_out(ordered, scales)
            linears[name] = self._places[name].bank(acting, name, layouts[scales], slots=slots)
        return replace(Bank.of_slots(_without_linears(acting), slots=slots), linears=linears)


def _cost(terms: Terms) -> int:
    """Return how many columns an adapter of any kind adds, and one for its rows of the tables."""
    bottleneck = max((len(term.down) for term in terms.hiddens.values()), default=0)
    keys = max((term.keys.shape[1] for term in terms.attentions.values()), default=0)
    return _width(terms) + bottleneck + keys + 1


def _width(terms: Terms) -> int:
    """Return the low-rank columns that an adapter has at every place."""
    downs = (term.down for term in terms.linears.values())
    return max((down.shape[0] for down in downs if down is not None), default=0)


def _scale(term: LinearTerm) -> float | None:
    return None if term.down is None else term.scale


def _lay_out(ordered: list[Held], scales: tuple[float | None, ...]) -> Layout:
    """Return whose each column is; those of nobody belong to slot -1.

    Some of nobody's follow the last: what a CPU prepares for every new shape it keeps, so that
    widths should come again.
    """
    columns: list[tuple[int, int, float]] = []
    reached = 0
    for one, scale in zip(ordered, scales, strict=True):
        if scale is None or not one.width:
            continue
        if one.start > reached:
            columns.append((-1, one.start - reached, 1.0))
        columns.append((one.slot, one.width, scale))
        reached = one.stop
    if reached and (missing := -reached % min(FEWEST_COLUMNS, 1 << (reached - 1).bit_length())):
        columns.append((-1, missing, 1.0))
    return Layout(tuple(columns))


def _without_linears(acting: Mapping[int, Terms]) -> dict[int, Terms]:
    return {slot: replace(terms, linears={}) for slot, terms in acting.items()}


@dataclass
class _Place:
    """Storage at one linear place; columns and rows that nobody owns hold finite numbers."""

    down_ci: Tensor | None = None
    up_co: Tensor | None = None
    tables_nf: dict[str, Tensor] = field(default_factory=dict)
    holders: dict[str, set[int]] = field(default_factory=dict)
    """Of each vector, the slots that have one."""

    def put(self, held: Held, term: LinearTerm) -> None:
        """Copy a term to its columns and rows; what it leaves of its columns becomes zero."""
        if term.down is not None and term.up is not None:
            self.down_ci = _reserve(self.down_ci, held.stop, like=term.down[0])
            self.up_co = _reserve(self.up_co, held.stop, like=term.up[:, 0])
            rank = len(term.down)
            for stored, given in ((self.down_ci, term.down), (self.up_co, term.up.t())):
                stored[held.start : held.start + rank] = given
                stored[held.start + rank : held.stop] = 0
        for name, fill in VECTORS.items():
            row = getattr(term, name)
            if row is not None:
                self.holders.setdefault(name, set()).add(held.slot)
                table = _extend(self.tables_nf.get(name), held.slot + 1, like=row, fill=fill)
                table[held.slot] = row
                self.tables_nf[name] = table

    def clear(self, slot: int, term: LinearTerm) -> None:
        """Let a slot's rows change nothing, whoever has it next."""
        for name, fill in VECTORS.items():
            if getattr(term, name) is not None:
                self.holders[name].discard(slot)
                self.tables_nf[name][slot] = fill

    def bank(
        self, acting: Mapping[int, Terms], name: str, layout: Layout, *, slots: int
    ) -> PlaceBank:
        """Return views of what is in use; every row looks its slot up in every table."""
        terms = {slot: one.linears[name] for slot, one in acting.items() if name in one.linears}
        used = sum(width for _, width, _ in layout.columns)
        tables = {
            f"{vector}_n{'i' if vector == 'input_scale' else 'o'}": self._table(vector, slots)
            for vector in self.tables_nf
            if self.holders[vector]
        }
        return PlaceBank(
            layout=layout if used else None,
            down_ri=self.down_ci[:used] if used and self.down_ci is not None else None,
            up_or=self.up_co[:used].t() if used and self.up_co is not None else None,
            weights=tuple((s, t.weight) for s, t in terms.items() if t.weight is not None),
            functions=tuple((s, t.function) for s, t in terms.items() if t.function is not None),
            **tables,
        )

    def _table(self, vector: str, slots: int) -> Tensor:
        """Return the table of a vector, with a row for every slot, of whomever."""
        table = self.tables_nf[vector]
        self.tables_nf[vector] = _extend(table, slots, like=table[0], fill=VECTORS[vector])
        return self.tables_nf[vector]


def _reserve(stored: Tensor | None, columns: int, *, like: Tensor) -> Tensor:
    """Return storage of at least so many rows like `like`, with what was stored, then zeros."""
    if stored is not None and len(stored) >= columns:
        return stored
    on_cpu = like.device.type == "cpu"
    least = COLUMNS if on_cpu else FEWEST_COLUMNS
    size = max(least, 1 << (columns - 1).bit_length())
    shape = (size, *like.shape)
    if on_cpu:
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size())
        grown = torch.frombuffer(pages, dtype=like.dtype).view(shape)
    else:
        grown = like.new_zeros(shape)
    if stored is not None:
        grown[: len(stored)] = stored
    return grown


def _extend(table: Tensor | None, rows: int, *, like: Tensor, fill: float) -> Tensor:
    """Return a table of at least so many rows: those that it had, then `fill`."""
    if table is not None and len(table) >= rows:
        return table
    size = max(FEWEST_SLOTS, 1 << (rows - 1).bit_length())
    grown = like.new_full((size, *like.shape), fill)
    if table is not None:
        grown[: len(table)] = table
    return grown
