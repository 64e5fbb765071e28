"""The executor that trains: each contiguous slice of the stream computed alone.

Shapes: T rows, i in features, o out features, d hidden, H query heads, h head dimension, f any.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.joint import Joint
from models.nn.kernels import Shift, Update, ops
from models.nn.terms import HiddenTerm, LinearTerm, Terms


@dataclass(frozen=True)
class DropoutSource:
    """Dropout masks as a function of counters, so that a resumed run draws the same ones."""

    seed: int
    step: int
    micro_batch: int = 0
    first_row: int = 0
    """Of the micro-batch's rows at a place, where a draw begins if it is not for all of them."""

    def drop(self, x_ti: Tensor, *, probability: float, place: str) -> Tensor:
        """Zero each element with `probability` and scale the rest by 1 / (1 - probability)."""
        return x_ti * self.draw(x_ti, probability=probability, place=place)

    def draw(self, x_ti: Tensor, *, probability: float, place: str) -> Tensor:
        """Return (T, i) of x's dtype: 0 with `probability`, else 1 / (1 - probability)."""
        counters = f"{self.seed}/{self.step}/{self.micro_batch}/{place}"
        if self.first_row:
            counters += f"/{self.first_row}"
        digest = hashlib.blake2b(counters.encode(), digest_size=8).digest()
        generator = torch.Generator(x_ti.device).manual_seed(int.from_bytes(digest, "big") >> 1)
        keep = 1.0 - probability
        mask_ti = torch.empty_like(x_ti, requires_grad=False)
        return mask_ti.bernoulli_(keep, generator=generator).div_(keep)


@dataclass(frozen=True)
class Segment:
    """Rows from `start` to `stop`, the adapter that acts on them, and what it drops in training."""

    start: int
    stop: int
    terms: Terms | None
    dropout: DropoutSource | None = None
    """The adapter's own, so that no neighbour changes what it draws; None in evaluation."""

    @property
    def rows(self) -> slice:
        """The rows as an index."""
        return slice(self.start, self.stop)


class _Slice(NamedTuple):
    """Rows of the stream and what stands in their place."""

    rows: slice
    values: Tensor


Kind = Literal["linears", "hiddens", "norms", "attentions"]


class Segments:
    """Each contiguous slice computed alone; rows outside all segments are the base's.

    `at` picks no row behind or between them: whoever wants one gives it a segment without terms.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        """Take segments in order."""
        ends = [0, *(segment.stop for segment in segments)]
        if any(
            not end <= segment.start < segment.stop
            for end, segment in zip(ends, segments, strict=False)
        ):
            raise ValueError("Segments must be in order, not empty and must not overlap.")
        self.segments = tuple(segments)

    def linear_input(self, place: str, x_ti: Tensor) -> Tensor:
        """See `Executor.linear_input`."""
        scaled = [
            _Slice(segment.rows, x_ti[segment.rows] * term.input_scale)
            for segment, term in self._acting("linears", place)
            if term.input_scale is not None
        ]
        return _replace_rows(x_ti, scaled)

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor) -> Tensor:
        """See `Executor.linear`."""
        applied = [
            _Slice(
                segment.rows,
                _linear(term, x_ti[segment.rows], y_to[segment.rows], place, segment.dropout),
            )
            for segment, term in self._acting("linears", place)
        ]
        return _replace_rows(y_to, applied)

    def project(self, joint: Joint, x_ti: Tensor) -> Tensor:
        """See `Executor.project`; a place whose input is scaled leaves its group."""
        acting = [list(self._acting("linears", place)) for place in joint.places]
        terms = [term for place in acting for _, term in place]
        if len(acting) > 1 and any(_is_apart(term) for term in terms):
            return torch.cat([self.project(one, x_ti) for one in joint.apart], dim=1)
        if any(term.function is not None or term.weight is not None for term in terms):
            place = joint.places[0]
            x_ti = self.linear_input(place, x_ti)
            y_to = ops(x_ti.device).project(x_ti, weight=joint.weight)
            return self.linear(place, x_ti, y_to)
        if any(term.input_scale is not None for term in terms):
            x_ti = self.linear_input(joint.places[0], x_ti)
        updates, shifts = _pieces(joint, acting, x_ti)
        y_to = ops(x_ti.device).project(x_ti, weight=joint.weight, updates=updates)
        return ops(y_to.device).scale_shift(y_to, shifts=shifts) if shifts else y_to

    def low_rank(self, joints: Iterable[Joint]) -> list[list[Update]] | None:
        """Return what acts at each of some joints, if it is nothing but updates without dropout.

        None also where anything acts on norms, sublayers or attention, in whatever layer.
        """
        for segment in self.segments:
            terms = segment.terms
            if terms and (terms.hiddens or terms.norms or terms.attentions):
                return None
            if terms and segment.dropout is not None and terms.drops:
                return None
        found: list[list[Update]] = []
        for joint in joints:
            found.append([])
            for place, columns in zip(joint.places, joint.columns, strict=True):
                for segment, term in self._acting("linears", place):
                    if not term.is_low_rank or term.down is None or term.up is None:
                        return None
                    rows = (segment.start, segment.stop)
                    found[-1].append(Update(rows, columns, term.down, term.up, term.scale))
        return found

    def acts(self, place: str) -> bool:
        """See `Executor.acts`."""
        return any(True for _ in self._acting("linears", place))

    def gain(self, place: str, gain_d: Tensor, *, rows: int) -> Tensor:
        """See `Executor.gain`."""
        acting = list(self._acting("norms", place))
        if not acting:
            return gain_d
        stream_td = gain_d.expand(rows, -1)
        gains = [
            _Slice(segment.rows, term.gain.expand(segment.stop - segment.start, -1))
            for segment, term in acting
        ]
        return _replace_rows(stream_td, gains)

    def hidden(self, place: str, x_td: Tensor, y_td: Tensor) -> Tensor:
        """See `Executor.hidden`."""
        applied = [
            _Slice(segment.rows, _bottleneck(term, x_td[segment.rows], y_td[segment.rows]))
            for segment, term in self._acting("hiddens", place)
        ]
        return _replace_rows(y_td, applied)

    def attention(
        self, layer: int, query_hth: Tensor, output_thh: Tensor, *, scale: float
    ) -> Tensor:
        """See `Executor.attention`."""
        applied = [
            _Slice(
                segment.rows,
                ops(output_thh.device).gated_attention(
                    output_thh[segment.rows],
                    query_hth[:, segment.rows],
                    keys_kph=term.keys,
                    values_kph=term.values,
                    gate=term.gate,
                    scale=scale,
                ),
            )
            for segment, term in self._acting("attentions", layer)
        ]
        return _replace_rows(output_thh, applied)

    def at(self, rows_n: Tensor) -> "Segments":
        """See `Executor.at`; each run of rows of one segment becomes a segment."""
        starts = torch.tensor([segment.start for segment in self.segments], device=rows_n.device)
        owners_n = torch.searchsorted(starts, rows_n, right=True) - 1
        owners, counts = torch.unique_consecutive(owners_n, return_counts=True)
        runs = []
        first = 0
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            run = rows_n[first : first + count]
            if owner < 0:
                runs.append(Segment(first, first + count, None))
            elif bool((run >= self.segments[owner].stop).any()):
                raise ValueError("Rows outside all segments cannot be picked; give them one.")
            else:
                runs.append(replace(self.segments[owner], start=first, stop=first + count))
            first += count
        return Segments(runs)

    def _acting(self, kind: Kind, place: str | int) -> Iterator[tuple[Segment, Any]]:
        for segment in self.segments:
            if segment.terms is not None:
                held: Mapping[str | int, Any] = getattr(segment.terms, kind)
                if (term := held.get(place)) is not None:
                    yield segment, term


def splits(joint: Joint, terms: Terms) -> bool:
    """Say whether `Segments.project` computes a joint otherwise for all rows because of these."""
    held = [term for place in joint.places if (term := terms.linears.get(place)) is not None]
    return any(
        term.weight is not None
        or term.function is not None
        or (len(joint.places) > 1 and term.input_scale is not None)
        for term in held
    )


def _is_apart(term: LinearTerm) -> bool:
    """Say whether a term needs its place computed by itself."""
    given = (term.input_scale, term.weight, term.function)
    return any(field is not None for field in given)


def _pieces(
    joint: Joint, acting: Sequence[Sequence[tuple[Segment, LinearTerm]]], x_ti: Tensor
) -> tuple[list[Update], list[Shift]]:
    """Return what acts at each of some joined places, as it lies in the joined outputs."""
    updates, shifts = [], []
    for place, columns, held in zip(joint.places, joint.columns, acting, strict=True):
        for segment, term in held:
            rows, dropout, keep_ti = (segment.start, segment.stop), segment.dropout, None
            if term.down is not None and term.up is not None:
                if dropout is not None and term.dropout > 0:
                    own_ti = x_ti[segment.rows]
                    keep_ti = dropout.draw(own_ti, probability=term.dropout, place=place)
                updates.append(Update(rows, columns, term.down, term.up, term.scale, keep_ti))
            if term.output_scale is not None or term.bias is not None:
                shifts.append(Shift(rows, columns, term.output_scale, term.bias))
    return updates, shifts


def _linear(
    term: LinearTerm, x_ti: Tensor, y_to: Tensor, place: str, dropout: DropoutSource | None
) -> Tensor:
    if term.function is not None:
        return term.function(x_ti, y_to)
    if term.weight is not None:
        y_to = F.linear(x_ti, term.weight)
    if term.down is not None and term.up is not None:
        if dropout is not None and term.dropout > 0:
            x_ti = dropout.drop(x_ti, probability=term.dropout, place=place)
        y_to = ops(y_to.device).low_rank(
            y_to, x_ti, down_ri=term.down, up_or=term.up, weight=term.scale
        )
    if term.output_scale is not None:
        y_to = y_to * term.output_scale
    return y_to if term.bias is None else y_to + term.bias


def _bottleneck(term: HiddenTerm, x_td: Tensor, y_td: Tensor) -> Tensor:
    y_td = ops(y_td.device).bottleneck(
        y_td,
        y_td if term.reads == "output" else x_td,
        down_md=term.down,
        down_bias_m=term.down_bias,
        activation=term.activation,
        up_dm=term.up,
        weight=term.scale,
    )
    return y_td + term.scale * term.up_bias


def _replace_rows(stream_tf: Tensor, slices: Sequence[_Slice]) -> Tensor:
    """Return the stream (T, ...) with slices, in order, replaced and all else as it is."""
    if not slices:
        return stream_tf
    pieces: list[Tensor] = []
    done = 0
    for rows, values in slices:
        if done < rows.start:
            pieces.append(stream_tf[done : rows.start])
        pieces.append(values)
        done = rows.stop
    if done < stream_tf.shape[0]:
        pieces.append(stream_tf[done:])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
