"""The op table: executors call `OPS`, and `OPS` decides which form of an op runs."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.nn.kernels import reference


class LowRank(Protocol):
    """See `reference.low_rank`."""

    def __call__(
        self, y_to: Tensor, x_ti: Tensor, *, down_ri: Tensor, up_or: Tensor, weight: Tensor | float
    ) -> Tensor:
        """Compute it."""


class RowVector(Protocol):
    """See `reference.row_scale` and `reference.row_shift`."""

    def __call__(self, x_ti: Tensor, *, table_ni: Tensor, rows_t: Tensor) -> Tensor:
        """Compute it."""


@dataclass(frozen=True)
class OpTable:
    """One form of each op."""

    low_rank: LowRank
    row_scale: RowVector
    row_shift: RowVector


OPS = OpTable(
    low_rank=reference.low_rank, row_scale=reference.row_scale, row_shift=reference.row_shift
)
