"""The op table: what every form of an op takes and gives; `reference.py` says what each means.

Shapes: t rows of a stream, i in features, o out features, r rank, d hidden, m inner width, H query
heads, K key heads, G = H + 2 K heads that lie side by side (query, key, value), h head dimension,
p keys, n rows with a target or vectors of a table, v vocabulary.

Rules for all forms. Gradients flow to every floating tensor that requires one. On a CPU a row's
results do not depend on which others are in a stream of a size that jobs share (`rows.py`). A form
may hand what it does not do (a dtype, a weight that trains, dropout) to the plain one. Rows may
lie apart (`stride(0)` above the row's size), but elements of a row are contiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from models.nn.terms import Activation


@dataclass(frozen=True, eq=False)
class Weight:
    """A linear weight of the base, and what forms keep of it, such as packed panels."""

    weight_oi: Tensor
    bias_o: Tensor | None = None
    kept: dict[str, Any] = field(default_factory=dict, repr=False)
    """By the name of a form; only for weights that never change."""


class Update(NamedTuple):
    """A low-rank update of the outputs `columns` of the stream's `rows`, both half-open."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    down_ri: Tensor
    up_or: Tensor
    scale: float
    keep_ti: Tensor | None = None
    """Dropout of this update's input, for its rows: 0, or 1 / (1 - probability)."""


class Shift(NamedTuple):
    """Vectors that scale and then shift the outputs `columns` of the stream's `rows`."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    scale_o: Tensor | None
    shift_o: Tensor | None


class Project(Protocol):
    """See `reference.project`."""

    def __call__(self, x_ti: Tensor, *, weight: Weight, updates: Sequence[Update] = ()) -> Tensor:
        """Compute it."""


class Layer(NamedTuple):
    """What a plain Llama's layer computes with, and the norm of what it hands on."""

    heads: Weight
    output: Weight
    gate_up: Weight
    down: Weight
    gains_d: tuple[Tensor, Tensor]
    """Of its second norm, and of the one behind it."""
    epsilons: tuple[float, float]

    @property
    def weights(self) -> tuple[Weight, Weight, Weight, Weight]:
        """Those of its products, in their order."""
        return self.heads, self.output, self.gate_up, self.down


class Heads(NamedTuple):
    """How the heads of a stream are turned, and which rows see which; see `attend_packed`."""

    kv_heads: int
    dimension: int
    angles: tuple[Tensor, Tensor]
    """Cosines and sines, (t, h)."""
    bounds: Sequence[int]
    parents: Sequence[int]


class ScaleShift(Protocol):
    """See `reference.scale_shift`."""

    def __call__(self, y_to: Tensor, *, shifts: Sequence[Shift]) -> Tensor:
        """Compute it; may write into y."""


class RmsNorm(Protocol):
    """See `reference.rms_norm`."""

    def __call__(self, x_td: Tensor, *, gain: Tensor, epsilon: float) -> Tensor:
        """Compute it."""


class AddRmsNorm(Protocol):
    """See `reference.add_rms_norm`."""

    def __call__(
        self, x_td: Tensor, y_td: Tensor, *, gain: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """Compute it."""


class Rotate(Protocol):
    """See `reference.rotate`."""

    def __call__(
        self, heads_tgh: Tensor, *, cos_th: Tensor, sin_th: Tensor, rotated: int
    ) -> Tensor:
        """Compute it; may write into the heads."""


class SwiGlu(Protocol):
    """See `reference.swiglu`."""

    def __call__(self, gate_up_tm: Tensor) -> Tensor:
        """Compute it."""


class AttendPacked(Protocol):
    """See `reference.attend_packed`."""

    def __call__(
        self,
        heads_tgh: Tensor,
        *,
        kv_heads: int,
        bounds: Sequence[int],
        scale: float,
        parents: Sequence[int] = (),
    ) -> Tensor:
        """Compute it."""


class LinearCrossEntropy(Protocol):
    """See `reference.linear_cross_entropy`."""

    def __call__(
        self, hidden_nd: Tensor, *, weight: Weight, targets_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute it; the weight is frozen."""


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


class Layers(Protocol):
    """Layers of a plain Llama: the ops of this table in the order of `models/nn/flat.py`."""

    def __call__(
        self,
        x_td: Tensor,
        normed_td: Tensor,
        *,
        layers: Sequence[Layer],
        updates: Sequence[Sequence[Update]],
        heads: Heads,
    ) -> tuple[Tensor, Tensor] | None:
        """Return the stream behind them and its norm from the stream and its norm before them.

        `updates` are those of each product. None where ops are to be asked one by one.
        """


@dataclass(frozen=True)
class OpTable:
    """One form of each op."""

    project: Project
    scale_shift: ScaleShift
    rms_norm: RmsNorm
    add_rms_norm: AddRmsNorm
    rotate: Rotate
    swiglu: SwiGlu
    attend_packed: AttendPacked
    linear_cross_entropy: LinearCrossEntropy
    low_rank: LowRank
    bottleneck: Bottleneck
    gated_attention: GatedAttention
    row_scale: RowVector
    row_shift: RowVector
    layers: Layers | None = None
    """Only where it does more than the ops one by one."""
