"""Who acts on which row: executors apply terms where the backbone asks at each place.

`Segments` computes contiguous slices alone: it trains, and jobs cannot touch each other.
`Packed` computes all adapters of a bank at once: it decodes, without gradients. `NOBODY` is the
base. Shapes: T rows, i in features, o out features.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from models.nn.bank import Bank, Layout
from models.nn.kernels import OPS
from models.nn.terms import LinearTerm, Terms

__all__ = [
    "NOBODY",
    "Bank",
    "DropoutSource",
    "Executor",
    "Nobody",
    "Packed",
    "Segment",
    "Segments",
]


class Executor(Protocol):
    """What the backbone calls around every linear place, on the rows of the stream."""

    def linear_input(self, place: str, x_ti: Tensor, /) -> Tensor:
        """Return what the base's product is to read, (T, i)."""

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor, /) -> Tensor:
        """Return (T, o) from that input and the base's product with its bias."""

    def at(self, rows_n: Tensor, /) -> "Executor":
        """Return an executor for a stream that consists of these rows (int64) only."""


class Nobody:
    """The base as it is."""

    def linear_input(self, place: str, x_ti: Tensor) -> Tensor:  # noqa: ARG002
        """Return the input itself."""
        return x_ti

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor) -> Tensor:  # noqa: ARG002
        """Return the base's product itself."""
        return y_to

    def at(self, rows_n: Tensor) -> "Nobody":  # noqa: ARG002
        """Return itself: no row is special."""
        return self


NOBODY = Nobody()


@dataclass(frozen=True)
class DropoutSource:
    """Dropout masks as a function of counters, so that a resumed run draws the same ones."""

    seed: int
    step: int
    micro_batch: int = 0

    def drop(self, x_ti: Tensor, *, probability: float, place: str, segment: int) -> Tensor:
        """Zero each element with `probability` and scale the rest by 1 / (1 - probability)."""
        counters = f"{self.seed}/{self.step}/{self.micro_batch}/{segment}/{place}"
        digest = hashlib.blake2b(counters.encode(), digest_size=8).digest()
        generator = torch.Generator(x_ti.device).manual_seed(int.from_bytes(digest, "big") >> 1)
        keep = 1.0 - probability
        mask_ti = torch.empty_like(x_ti, requires_grad=False)
        return x_ti * mask_ti.bernoulli_(keep, generator=generator).div_(keep)


@dataclass(frozen=True)
class Segment:
    """Rows from `start` to `stop` and the adapter that acts on them."""

    start: int
    stop: int
    terms: Terms | None


class Segments:
    """Each contiguous slice computed alone; rows outside all segments are the base's."""

    def __init__(
        self, segments: Sequence[Segment], *, dropout: DropoutSource | None = None
    ) -> None:
        """Take segments in order; without a dropout source (evaluation) nothing is dropped."""
        ends = [0, *(segment.stop for segment in segments)]
        if any(
            not end <= segment.start < segment.stop
            for end, segment in zip(ends, segments, strict=False)
        ):
            raise ValueError("Segments must be in order, not empty and must not overlap.")
        self.segments = tuple(segments)
        self.dropout = dropout

    def linear_input(self, place: str, x_ti: Tensor) -> Tensor:
        """See `Executor.linear_input`."""

        return _replace_rows(
            x_ti,
            [
                (rows, x_ti[rows] * term.input_scale)
                for rows, term, _ in self._acting(place)
                if term.input_scale is not None
            ],
        )

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor) -> Tensor:
        """See `Executor.linear`."""

        return _replace_rows(
            y_to,
            [
                (rows, self._apply(term, x_ti[rows], y_to[rows], place=place, index=index))
                for rows, term, index in self._acting(place)
            ],
        )

    def at(self, rows_n: Tensor) -> "Segments":
        """See `Executor.at`; each run of rows of one segment becomes a segment."""
        starts = torch.tensor([segment.start for segment in self.segments], device=rows_n.device)
        owners_n = torch.searchsorted(starts, rows_n, right=True) - 1
        owners, counts = torch.unique_consecutive(owners_n, return_counts=True)
        runs = []
        first = 0
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            run = rows_n[first : first + count]
            terms = self.segments[owner].terms if owner >= 0 else None
            if owner >= 0 and bool((run >= self.segments[owner].stop).any()):
                raise ValueError("Rows outside all segments cannot be picked; give them one.")
            runs.append(Segment(first, first + count, terms))
            first += count
        return Segments(runs, dropout=self.dropout)

    def _acting(self, place: str) -> Iterator[tuple[slice, LinearTerm, int]]:
        for index, segment in enumerate(self.segments):
            term = segment.terms.linears.get(place) if segment.terms else None
            if term is not None:
                yield slice(segment.start, segment.stop), term, index

    def _apply(
        self, term: LinearTerm, x_ti: Tensor, y_to: Tensor, *, place: str, index: int
    ) -> Tensor:
        if term.function is not None:
            return term.function(x_ti, y_to)
        if term.down is not None and term.up is not None:
            if self.dropout is not None and term.dropout > 0:
                x_ti = self.dropout.drop(x_ti, probability=term.dropout, place=place, segment=index)
            y_to = OPS.low_rank(y_to, x_ti, down_ri=term.down, up_or=term.up, weight=term.scale)
        if term.output_scale is not None:
            y_to = y_to * term.output_scale
        return y_to if term.bias is None else y_to + term.bias


def _replace_rows(stream_tf: Tensor, slices: Sequence[tuple[slice, Tensor]]) -> Tensor:
    """Return the stream (T, f) with slices, in order, replaced and all else as it is."""
    pieces: list[Tensor] = []
    done = 0
    for rows, piece_nf in slices:
        if done < rows.start:
            pieces.append(stream_tf[done : rows.start])
        pieces.append(piece_nf)
        done = rows.stop
    if done < stream_tf.shape[0]:
        pieces.append(stream_tf[done:])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@dataclass(frozen=True)
class Packed:
    """Every row by the adapter in its slot, all at once: two products a place and some gathers.

    Rows are not isolated from a neighbour's NaN, so adapters are checked when loaded.
    """

    bank: Bank
    slots_t: Tensor
    """(T,) int64, 0 for rows of the base."""
    _weights: dict[Layout, Tensor] = field(default_factory=dict, repr=False)

    def linear_input(self, place: str, x_ti: Tensor) -> Tensor:
        """See `Executor.linear_input`."""
        held = self.bank.places.get(place)
        if held is None or held.input_scale_ni is None:
            return x_ti
        return OPS.row_scale(x_ti, table_ni=held.input_scale_ni, rows_t=self.slots_t)

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor) -> Tensor:
        """See `Executor.linear`."""
        held = self.bank.places.get(place)
        if held is None:
            return y_to
        if held.layout and held.down_ri is not None and held.up_or is not None:
            weight_tr = self._weight(held.layout, y_to.dtype)
            y_to = OPS.low_rank(
                y_to, x_ti, down_ri=held.down_ri, up_or=held.up_or, weight=weight_tr
            )
        if held.output_scale_no is not None:
            y_to = OPS.row_scale(y_to, table_ni=held.output_scale_no, rows_t=self.slots_t)
        if held.bias_no is not None:
            y_to = OPS.row_shift(y_to, table_ni=held.bias_no, rows_t=self.slots_t)
        for slot, function in held.functions:
            rows = (self.slots_t == slot).nonzero()[:, 0]
            if len(rows):
                y_to = y_to.index_copy(0, rows, function(x_ti[rows], y_to[rows]))
        return y_to

    def at(self, rows_n: Tensor) -> "Packed":
        """See `Executor.at`."""
        return Packed(self.bank, self.slots_t[rows_n])

    def _weight(self, layout: Layout, dtype: torch.dtype) -> Tensor:
        if layout not in self._weights:
            self._weights[layout] = layout.weight(self.slots_t, dtype)
        return self._weights[layout]
