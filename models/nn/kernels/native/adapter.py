"""An adapter's terms as the C++ step reads them.

Shapes: r rank, i in features, o out features, K key heads, p keys, h head dimension.
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.kernels.native import INPUT_STEP, Library, records
from models.nn.kernels.native.arena import LARGE_PAGE, Arena
from models.nn.kernels.native.model import Unsuited
from models.nn.shape import HEAD, Shape
from models.nn.terms import AttentionTerm, HiddenTerm, LinearTerm, Terms

_PAIR, _WIDTH, _BLOCK = 2, 16, 64


@dataclass(frozen=True, eq=False)
class StepAdapter:
    """What the step takes as an adapter, and what must stay alive for it."""

    record: records.Adapter
    layers: ctypes.Array[records.AdapterLayer]
    arena: Arena
    most_ranks: int
    """Of the joined low-rank inputs of a site."""
    most_width: int
    """Of a bottleneck."""
    scales_inputs: bool
    """Whether it scales what q, k, v, gate or up read."""
    replaces_weights: bool
    """Whether a place has a weight of its own instead of the base's."""

    @cached_property
    def address(self) -> int:
        """Where the record lies."""
        return records.address(self.record)


@torch.no_grad()
def prepare(terms: Terms, shape: Shape, library: Library) -> StepAdapter:
    """Pack an adapter; `Unsuited` names the term that the step does not compute.

    Its numbers must be finite: rows of others are multiplied with them by zero.
    """
    if terms.weights:
        raise Unsuited("it replaces the network's own weights")
    for place, term in terms.linears.items():
        if term.function is not None:
            raise Unsuited(f"its term at {place} is a function")
    if any(term.input_scale is not None for term in _at(terms, HEAD)):
        raise Unsuited("it scales the input of the head")
    arena = Arena(library, chunk=min(LARGE_PAGE, terms.bytes))  # small ones are many
    layers = (records.AdapterLayer * shape.layers)()
    writer = _Writer(terms, arena, library)
    for index, record in enumerate(layers):
        writer.layer(record, index)
    record = records.Adapter(layers=records.address(layers))
    record.head_down, (record.head,) = writer.site([HEAD], folds=False)
    if (final := terms.norms.get("norm")) is not None:
        record.final_gain = arena.put(final.gain)
    return StepAdapter(
        record,
        layers,
        arena,
        most_ranks=writer.most_ranks,
        most_width=writer.most_width,
        scales_inputs=writer.scales_inputs,
        replaces_weights=writer.replaces_weights,
    )


def _at(terms: Terms, place: str) -> Iterable[LinearTerm]:
    term = terms.linears.get(place)
    return () if term is None else (term,)


class _Writer:
    """Fills records, and knows afterwards how much room a step needs."""

    def __init__(self, terms: Terms, arena: Arena, library: Library) -> None:
        self._terms = terms
        self._arena = arena
        self._library = library
        self.most_ranks = self.most_width = 0
        self.scales_inputs = self.replaces_weights = False
        self._scales: dict[tuple[float, ...], int | None] = {}
        """Where those of a site lie, which most layers have in common."""

    def layer(self, record: records.AdapterLayer, index: int) -> None:
        """Fill the record of one layer."""
        prefix, place = f"layers.{index}", 0
        for site, names in enumerate(records.SITES):
            block = records.SUBLAYERS[site // 2]
            shared = len(names) > 1  # by places that may be scaled differently
            paths = [f"{prefix}.{block}.{name}" for name in names]
            by_turns = names == records.BY_TURNS and self._library.adds_by_tiles
            record.downs[site], filled = self.site(paths, folds=shared, by_turns=by_turns)
            for one in filled:
                record.places[place] = one
                self.scales_inputs |= shared and bool(one.input_scale)
                place += 1
        for number, (block, norm) in enumerate(zip(records.SUBLAYERS, records.NORMS, strict=True)):
            if (hidden := self._terms.hiddens.get(f"{prefix}.{block}")) is not None:
                record.bottlenecks[number] = self._bottleneck(hidden)
            if (gain := self._terms.norms.get(f"{prefix}.{norm}")) is not None:
                record.gains[number] = self._arena.put(gain.gain)
        if (second := self._terms.attentions.get(index)) is not None:
            record.second = self._second(second)

    def site(
        self, places: Sequence[str], *, folds: bool, by_turns: bool = False
    ) -> tuple[records.Down, list[records.Place]]:
        """Return the records of places that read the same rows.

        With `folds` the low-rank inputs read rows before they are scaled for their place. Panels of
        low-rank outputs lie `by_turns` if both places have as many of one rank.
        """
        terms = [self._terms.linears.get(name) or LinearTerm() for name in places]
        downs: list[Tensor] = []
        scales: list[float] = []
        filled = []
        for term in terms:
            first = sum(map(len, downs))
            filled.append(self._place(term, first=first))
            if term.down is None:
                continue
            down_ri = term.down
            if folds and term.input_scale is not None:
                down_ri = down_ri.float() * term.input_scale.float()
            if len(down_ri) % _PAIR:
                down_ri = F.pad(down_ri, (0, 0, 0, 1))
            downs.append(down_ri.bfloat16())
            scales += [term.scale] * len(down_ri)
        if not downs:
            return records.Down(), filled
        self._put_ups([term.up for term in terms], filled, by_turns=by_turns)
        ranks = len(scales) + -len(scales) % _WIDTH
        scales += [0.0] * (ranks - len(scales))
        self.most_ranks = max(self.most_ranks, ranks)
        joined = records.Down(
            packed=self._arena.pack(torch.cat(downs) if len(downs) > 1 else downs[0]),
            scales=self._put_scales(tuple(scales)),
            ranks=ranks,
        )
        return joined, filled

    def _put_scales(self, scales: tuple[float, ...]) -> int | None:
        if scales not in self._scales:
            self._scales[scales] = self._arena.put(torch.tensor(scales))
        return self._scales[scales]

    def _place(self, term: LinearTerm, *, first: int) -> records.Place:
        record = records.Place(
            input_scale=self._arena.put(term.input_scale),
            output_scale=self._arena.put(term.output_scale),
            bias=self._arena.put(term.bias),
        )
        if term.weight is not None:
            record.weight = self._arena.pack(term.weight)
            self.replaces_weights = True
        if term.up is not None:
            record.rank = term.up.shape[1] + term.up.shape[1] % _PAIR
            record.first = first
        return record

    def _put_ups(
        self, ups: Sequence[Tensor | None], filled: Sequence[records.Place], *, by_turns: bool
    ) -> None:
        """Pack the low-rank outputs of places."""
        there = [(up, place) for up, place in zip(ups, filled, strict=True) if up is not None]
        alike = len(there) == len(filled) and len({up.shape for up, _ in there}) == 1
        if by_turns and alike and len(there[0][0]) % _WIDTH == 0:
            panels = [up.reshape(-1, _WIDTH, up.shape[1]) for up, _ in there]
            self._put_up(torch.stack(panels, dim=1).flatten(0, 2), filled)
        else:
            for up, place in there:
                self._put_up(up, [place])

    def _put_up(self, up: Tensor, places: Sequence[records.Place]) -> None:
        """Pack low-rank outputs of places of one rank, whose panels lie by turns."""
        rank = places[0].rank
        address = self._arena.pack(up, inputs=rank, readable=rank + -rank % INPUT_STEP)
        one_tile = len(places) * rank <= INPUT_STEP
        for turn, place in enumerate(places):
            place.up = address + turn * _WIDTH * rank * torch.bfloat16.itemsize
            place.stride = len(places) * _WIDTH * rank
            place.behind = turn * rank if one_tile else 0

    def _bottleneck(self, term: HiddenTerm) -> records.Bottleneck:
        size = len(term.down)
        width = size + -size % _WIDTH
        self.most_width = max(self.most_width, width)
        return records.Bottleneck(
            down=self._arena.pack(term.down),
            up=self._arena.pack(term.up, inputs=width),
            down_bias=self._arena.put(F.pad(term.down_bias.float(), (0, width - size))),
            up_bias=self._arena.put(term.up_bias),
            width=width,
            activation=records.ACTIVATIONS.index(term.activation),
            reads_input=term.reads == "input",
            scale=term.scale,
        )

    def _second(self, term: AttentionTerm) -> records.Second:
        heads, count, size = term.keys.shape
        blocks = -(-count // _BLOCK)
        keys, values = (self._arena.reserve(heads * blocks * _BLOCK * size) for _ in range(2))
        keys_kph, values_kph = (side.bfloat16().contiguous() for side in (term.keys, term.values))
        self._library.handle.gw_pack_attention(
            *map(ctypes.c_void_p, (keys_kph.data_ptr(), values_kph.data_ptr())),
            *map(ctypes.c_int64, (heads, count, size)),
            *map(ctypes.c_void_p, (keys, values)),
        )
        gate = self._arena.put(term.gate)
        return records.Second(keys=keys, values=values, gate=gate, count=count)
