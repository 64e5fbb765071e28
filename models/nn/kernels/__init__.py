"""The op table: executors call `OPS`, and `OPS` decides which form of an op runs."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.nn.kernels import reference
from models.nn.terms import Activation


class LowRank(Protocol):
    """See `reference.low_rank`."""

    def __call__(
        self, y_to: Tensor, x_ti: Tensor, *, down_ri: Tensor, up_or: Tensor, weight: Tensor | float
    ) -> Tensor:
        """Compute it."""


class Bottleneck(Protocol):
    """See `reference.bottleneck`."""

    def __call__(
        self,
        y_td: Tensor,
        z_td: Tensor,
        *,
        down_md: Tensor,
        down_bias_m: Tensor,
        activation: Activation,
        up_dm: Tensor,
        weight: Tensor | float,
    ) -> Tensor:
        """Compute it."""


class GatedAttention(Protocol):
    """See `reference.gated_attention`."""

    def __call__(
        self,
        output_thh: Tensor,
        query_hth: Tensor,
        *,
        keys_kph: Tensor,
        values_kph: Tensor,
        gate: Tensor,
        scale: float,
        visible_tp: Tensor | None = None,
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
    bottleneck: Bottleneck
    gated_attention: GatedAttention
    row_scale: RowVector
    row_shift: RowVector


OPS = OpTable(
    low_rank=reference.low_rank,
    bottleneck=reference.bottleneck,
    gated_attention=reference.gated_attention,
    row_scale=reference.row_scale,
    row_shift=reference.row_shift,
)
