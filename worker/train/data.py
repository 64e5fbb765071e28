"""Rows of a data set as tokens: rendered once, kept flat on disk, ordered by seed, packed.

Shapes: t rows of a packed stream, n rows whose next token is a label.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Protocol, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InvalidData, InvalidRequest
from models.dataset import REPORTED_PROBLEMS, Row, inspect, iterate
from models.dataset_problems import LineProblem
from models.nn.chat import Example
from models.nn.lineage import Tree, share_starts

ScalarT = TypeVar("ScalarT", bound=np.generic)


class DataCounts(msgspec.Struct, kw_only=True):
    """What became of the rows of a file; none is lost silently."""

    rows_kept: int = 0
    rows_truncated: int = 0
    rows_dropped: int = 0
    dropped_lines: list[int] = []
    """The first of them."""
    tokens: int = 0
    labelled_tokens: int = 0
    longest_row: int = 0


@dataclass(frozen=True)
class Examples:
    """Tokenised rows laid end to end: 5 bytes a token on disk, 8 a row in memory."""

    ids: NDArray[np.int32]
    labelled: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    counts: DataCounts

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def length(self, row: int) -> int:
        """Return how many tokens a row has."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def labels(self, rows: Iterable[int]) -> int:
        """Return how many tokens of these rows are targets."""
        return sum(int(self.labelled[self._slice(row)][1:].sum()) for row in rows)

    def pack(self, rows: Sequence[int], *, device: str) -> "Stream":
        """Lay rows end to end as one stream, each up to the last token that predicts a label.

        What follows it reaches no loss. Rows without labels are read otherwise, and stay whole.
        """
        sequences, reads, targets, start = [], [], [], 0
        for piece in map(self._slice, rows):
            ids_t = self.ids[piece].astype(np.int64)
            read_n = np.flatnonzero(self.labelled[piece][1:])  # nothing precedes a first token
            sequences.append(ids_t[: read_n[-1] + 1] if len(read_n) else ids_t)
            reads.append(start + read_n)
            targets.append(ids_t[read_n + 1])
            start += len(sequences[-1])
        return Stream(
            rows=tuple(rows),
            tokens=sum(map(self.length, rows)),
            ids_t=torch.from_numpy(np.concatenate(sequences)).to(device),
            lengths=tuple(map(len, sequences)),
            rows_n=torch.from_numpy(np.concatenate(reads)).to(device),
            targets_n=torch.from_numpy(np.concatenate(targets)).to(device),
            tree=share_starts(sequences, device=device),
        )

    def _slice(self, row: int) -> slice:
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))


@dataclass(frozen=True)
class Stream:
    """One micro-batch: sequences end to end, and which of their rows predict which labels."""

    rows: tuple[int, ...]
    """The data set's own rows."""
    tokens: int
    """How many those have, read or not."""
    ids_t: Tensor
    lengths: tuple[int, ...]
    rows_n: Tensor
    targets_n: Tensor
    tree: Tree | None
    """The sequences with what they share laid down once, where that saves enough."""


def read_examples(
    path: Path,
    *,
    folder: Path,
    render: Callable[[Row], Example],
    max_length: int,
    param: str,
    cut: "Cut | None" = None,
    stay_alive: Callable[[], None] = lambda: None,
) -> Examples:
    """Tokenise a file by `render`; `InvalidData` names its problems, by line.

    The tokens go to files of `folder` without names, which end with the process.
    Rows longer than `max_length` tokens are cut by `cut` (`keep_start` if none is given); a file
    of which nothing is left raises `InvalidRequest`.
    """
    offsets, counts = array("q", [0]), DataCounts()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with TemporaryFile(dir=folder) as ids, TemporaryFile(dir=folder) as labelled:
        for line, row in iterate(path):
            stay_alive()
            example = _render(row, line=line, render=render)
            if isinstance(example, LineProblem):
                raise _invalid(path, problem=example, param=param)
            kept = (cut or keep_start)(example, line=line, max_length=max_length, counts=counts)
            if kept is not None:
                ids.write(array("i", kept.ids))
                labelled.write(bytes(kept.labelled))
                offsets.append(offsets[-1] + len(kept.ids))
        counts.tokens = offsets[-1]
        if not counts.rows_kept:
            raise _nothing_left(counts, max_length=max_length, param=param)
        return Examples(
            _map(ids, np.int32), _map(labelled, np.bool_), np.frombuffer(offsets, np.int64), counts
        )


def _map(file: IO[bytes], dtype: type[ScalarT]) -> NDArray[ScalarT]:
    """Return a file's numbers; its pages come at need, and the kernel may take them back."""
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r")


class Cut(Protocol):
    """Returns what is kept of an example, and counts what became of it."""

    def __call__(
        self, example: Example, /, *, line: int, max_length: int, counts: DataCounts
    ) -> Example | None:
        """Return it, or None where the row is dropped."""


def keep_start(
    example: Example, *, line: int, max_length: int, counts: DataCounts
) -> Example | None:
    """Keep the start of a long example, and drop one that has nothing to learn there."""
    kept = Example(example.ids[:max_length], example.labelled[:max_length])
    labels = sum(kept.labelled[1:])
    counts.rows_truncated += len(example.ids) > max_length
    if not labels:
        counts.rows_dropped += 1
        if len(counts.dropped_lines) < REPORTED_PROBLEMS:
            counts.dropped_lines.append(line)
        return None
    _count(kept, labels=labels, counts=counts)
    return kept


def keep_end(
    example: Example,
    *,
    line: int,  # noqa: ARG001 - no row is dropped
    max_length: int,
    counts: DataCounts,
) -> Example:
    """Keep the end of a long question, where its answer would begin; it has one label."""
    kept = Example(example.ids[-max_length:], example.labelled[-max_length:])
    counts.rows_truncated += len(example.ids) > max_length
    _count(kept, labels=1, counts=counts)
    return kept


def _count(kept: Example, *, labels: int, counts: DataCounts) -> None:
    counts.rows_kept += 1
    counts.labelled_tokens += labels
    counts.longest_row = max(counts.longest_row, len(kept.ids))


def _render(
    row: Row | LineProblem, *, line: int, render: Callable[[Row], Example]
) -> Example | LineProblem:
    """Tokenise one row; what the base's template refuses is a problem of that row."""
    if isinstance(row, LineProblem):
        return row
    try:
        return render(row)
    except InvalidRequest as error:
        return LineProblem(line=line, code=error.code, message=error.message, param=error.param)


def _nothing_left(counts: DataCounts, *, max_length: int, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"No row of the file keeps a token to learn within {max_length} tokens "
        f"(of all {counts.rows_dropped} rows); raise max_sequence_length or shorten the rows.",
        code="no_trainable_tokens",
        param=param,
    )


def _invalid(path: Path, *, problem: LineProblem, param: str) -> InvalidData:
    """Prefer the report on the whole file; a template's refusal is only known here."""
    report = inspect(path)
    if report.problem_counts:
        return InvalidData(report.summary(), param=param, problems=report.problem_dicts())
    return InvalidData(
        f"Line {problem.line}: {problem.message}",
        param=param,
        problems=[msgspec.to_builtins(problem)],
    )


def micro_batches(
    examples: Examples, rows: NDArray[np.int64], *, max_tokens: int, device: str
) -> Iterator[Stream]:
    """Pack rows, long ones first, into streams of at most `max_tokens` (a longer row is alone)."""
    pending: list[int] = []
    tokens = 0
    lengths = examples.offsets[rows + 1] - examples.offsets[rows]
    for index in np.lexsort((rows, -lengths)):
        row, length = int(rows[index]), int(lengths[index])
        if pending and tokens + length > max_tokens:
            yield examples.pack(pending, device=device)
            pending, tokens = [], 0
        pending.append(row)
        tokens += length
    yield examples.pack(pending, device=device)
