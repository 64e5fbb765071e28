"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) over float32 values, and the norm of gradients.

Tensors of a call are contiguous and of one device. Shapes: n numbers, in any shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw as by_torch

from models.nn.kernels.native import adamw as native

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_RUN = 2**12
"""The squares of so many numbers are summed in float32 without losing small ones."""


@dataclass(frozen=True)
class Moments:
    """What is remembered of gradients: their number () and their moments (n,), float32."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @classmethod
    def before(cls, values: Tensor) -> "Moments":
        """Return those before the first gradient of these values."""
        step = torch.zeros((), device=values.device)
        return cls(step, torch.zeros_like(values), torch.zeros_like(values))


@dataclass(frozen=True)
class Move:
    """What moves values (n,) float32: a gradient (n,), float32 or in a narrower dtype."""

    values: Tensor
    gradient: Tensor
    moments: Moments
    rounded: Tensor | None = None
    """Where the values are written once more, in another dtype."""


@torch.no_grad()
def adamw(
    moves: Sequence[Move], *, rate: float, weight_decay: float, divisor: Tensor | None = None
) -> None:
    """Take a step by gradients over `divisor`, () float32; gradients may be written into."""
    others: list[Move] = []
    for move in moves:
        moments = move.moments
        if not native.takes(move.values, move.gradient, move.rounded):
            others.append(move)
            continue
        moments.step.add_(1)
        native.step(
            move.values,
            move.gradient,
            (moments.exp_avg, moments.exp_avg_sq),
            move.rounded,
            number=int(moments.step.item()),
            rate=rate,
            weight_decay=weight_decay,
            betas=BETAS,
            epsilon=EPSILON,
            divisor=1.0 if divisor is None else divisor.item(),
        )
    whole = [move for move in others if move.gradient.dtype is move.values.dtype]
    narrow = [move for move in others if move.gradient.dtype is not move.values.dtype]
    for same in ([whole] if whole else []) + [[move] for move in narrow]:  # one wide copy at a time
        _move_by_torch(same, rate=rate, weight_decay=weight_decay, divisor=divisor)


def _move_by_torch(
    moves: Sequence[Move], *, rate: float, weight_decay: float, divisor: Tensor | None
) -> None:
    by_torch(
        [move.values for move in moves],
        [move.gradient.to(move.values.dtype) for move in moves],
        [move.moments.exp_avg for move in moves],
        [move.moments.exp_avg_sq for move in moves],
        [],
        [move.moments.step for move in moves],
        fused=True,
        grad_scale=divisor,
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=rate,
        weight_decay=weight_decay,
        eps=EPSILON,
        maximize=False,
    )
    twice = [(move.rounded, move.values) for move in moves if move.rounded is not None]
    if twice:
        torch._foreach_copy_([rounded for rounded, _ in twice], [values for _, values in twice])


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all, () float32, from those of short runs, which several threads share.

    Taken as one, millions of float32 squares lose the small ones: some 1e-4 of the norm and more.
    """
    runs = [run for gradient in gradients for run in _norms(gradient)]
    total: Tensor = torch.linalg.vector_norm(torch.cat(runs))
    return total


def _norms(gradient: Tensor) -> list[Tensor]:
    """Return the norms of runs of `_RUN` values, and that of the rest."""
    if native.takes_gradient(gradient):
        return [native.norms(gradient, run=_RUN)]
    values = gradient.flatten()
    whole = values.numel() // _RUN * _RUN
    parts = (values[:whole].view(-1, _RUN), values[whole:].view(1, -1))
    return [torch.linalg.vector_norm(part, dim=1, dtype=torch.float32) for part in parts]
