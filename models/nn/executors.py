"""Who acts on which row: executors apply terms where the backbone asks at each place.

`Segments` computes contiguous slices alone: it trains, and jobs cannot touch each other.
`Packed` computes all adapters of a bank at once: it decodes, without gradients. `NOBODY` is the
base. Shapes: T rows, i in features, o out features, d hidden, H query heads, h head dimension.
"""

from typing import Protocol

from torch import Tensor

from models.nn.bank import Bank
from models.nn.joint import Joint
from models.nn.kernels import ops
from models.nn.packed import Packed
from models.nn.segments import DropoutSource, Segment, Segments

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
    """What the backbone calls at every place, on the rows of the stream.

    Where nothing acts, an executor returns the very tensor that it was given.
    """

    def linear_input(self, place: str, x_ti: Tensor, /) -> Tensor:
        """Return what the base's product is to read, (T, i)."""

    def linear(self, place: str, x_ti: Tensor, y_to: Tensor, /) -> Tensor:
        """Return (T, o) from that input and the base's product with its bias."""

    def project(self, joint: Joint, x_ti: Tensor, /) -> Tensor:
        """Return (T, o): the base's product of joined places and what acts around it, at once."""

    def acts(self, place: str, /) -> bool:
        """Say whether anything acts at a linear place."""

    def gain(self, place: str, gain_d: Tensor, /, *, rows: int) -> Tensor:
        """Return the gain of a norm, (d,) or (rows, d) float32, from the base's."""

    def hidden(self, place: str, x_td: Tensor, y_td: Tensor, /) -> Tensor:
        """Return (T, d) from a sublayer's input and its output."""

    def attention(
        self, layer: int, query_hth: Tensor, output_thh: Tensor, /, *, scale: float
    ) -> Tensor:
        """Return (T, H, h) from the rotated query and the core attention's output."""

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

    def project(self, joint: Joint, x_ti: Tensor) -> Tensor:
        """Return the base's product."""
        return ops(x_ti.device).project(x_ti, weight=joint.weight)

    def acts(self, place: str) -> bool:  # noqa: ARG002
        """Say no."""
        return False

    def gain(self, place: str, gain_d: Tensor, *, rows: int) -> Tensor:  # noqa: ARG002
        """Return the base's gain itself."""
        return gain_d

    def hidden(self, place: str, x_td: Tensor, y_td: Tensor) -> Tensor:  # noqa: ARG002
        """Return the sublayer's output itself."""
        return y_td

    def attention(
        self,
        layer: int,  # noqa: ARG002
        query_hth: Tensor,  # noqa: ARG002
        output_thh: Tensor,
        *,
        scale: float,  # noqa: ARG002
    ) -> Tensor:
        """Return the core attention's output itself."""
        return output_thh

    def at(self, rows_n: Tensor) -> "Nobody":  # noqa: ARG002
        """Return itself: no row is special."""
        return self


NOBODY = Nobody()
