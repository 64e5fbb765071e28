"""The stream of one step, as lists: whose token stands where."""

from dataclasses import dataclass, field

from worker.engine.blocks import Span
from worker.engine.scheduler import Chunk, Step


def bucket(count: int) -> int:
    """Round a number of rows up to one of few, because a CPU prepares anew for every new shape."""
    if count <= 8:
        return 1 << (count - 1).bit_length() if count else 0
    step = 8 if count <= 32 else 16
    return -(-count // step) * step


@dataclass(slots=True)
class Layout:
    """Rows of the stream; those beside what decodes and what is read belong to nobody."""

    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """The position of each row in its own sequence."""
    owners: list[str | None] = field(default_factory=list)
    positions: list[int | None] = field(default_factory=list)
    """Of the leading rows, one a slot."""
    spans: list[Span] = field(default_factory=list)

    def add(self, token: int, place: int, owner: str | None) -> None:
        """Append a row."""
        self.ids.append(token)
        self.places.append(place)
        self.owners.append(owner)


def lay_out(step: Step, *, rows: int) -> Layout:
    """Lay out decode rows at their slots, holes between them; then chunks; then padding."""
    layout = Layout()
    by_slot = {sequence.slot: sequence for sequence in step.decodes}
    highest = max((sequence.slot or 0 for sequence in step.decodes), default=-1)
    for slot in range(min(bucket(highest + 1), rows)):
        sequence = by_slot.get(slot)
        if sequence is None:
            layout.add(0, 0, None)
            layout.positions.append(None)
        else:
            place = sequence.footing.rows + sequence.computed
            layout.add(sequence.last_token, place, sequence.footing.owner)
            layout.positions.append(place)
    for chunk in step.chunks:
        _add_chunk(layout, chunk)
    for _ in range(bucket(len(layout.ids)) - len(layout.ids) if step.chunks else 0):
        layout.add(0, 0, None)
    return layout


def _add_chunk(layout: Layout, chunk: Chunk) -> None:
    sequence, first = chunk.sequence, len(layout.ids)
    before, tree = sequence.footing.rows, sequence.tree
    start, stop = before + chunk.start, before + chunk.stop
    trunk = before + sequence.trunk
    layout.ids += sequence.prompt[chunk.start : chunk.stop]
    layout.places += tree.positions(start, stop, trunk=trunk) if tree else range(start, stop)
    layout.owners += [sequence.footing.owner] * (stop - start)
    span = Span(sequence.slot or 0, first, len(layout.ids), start, stop, tree, trunk)
    layout.spans.append(span)
