"""Compares a form of an op with its plain meaning, values and gradients."""

from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
DTYPES = (torch.float32, torch.bfloat16)
# The interpreter cuts numbers to bfloat16 where a GPU rounds them: twice the error at each step.
_SHARES = {torch.float32: 2e-6, torch.bfloat16: 3e-2}


def draw(*sizes: int, dtype: torch.dtype, trains: bool = True) -> Tensor:
    """Draw a matrix whose rows have about unit length."""
    tensor = (torch.randn(*sizes) * sizes[-1] ** -0.5).to(DEVICE, dtype)
    return tensor.requires_grad_(trains)


def spread(*sizes: int, dtype: torch.dtype) -> Tensor:
    """Draw rows that lie apart in memory, as columns of something wider do."""
    wide = draw(*sizes[:-1], 2 * sizes[-1], dtype=dtype, trains=False)
    return wide[..., : sizes[-1]].requires_grad_()


def far_apart(near: Tensor) -> Tensor:
    """Return three rows or heads again, the last one 2^31 numbers behind the first.

    Of these 4 GiB only the pages of what is held are touched. Read from elsewhere, Python ends.
    """
    wide = torch.empty(2**31 + near[0].numel(), dtype=near.dtype, device=near.device)
    far = wide.as_strided(near.shape, (2**30, *near[0].contiguous().stride()))
    return far.copy_(near.detach()).requires_grad_(near.requires_grad)


def assert_near(
    ours: Tensor, plain: Tensor, *, dtype: torch.dtype | None = None, what: str = "values"
) -> None:
    """Fail unless all numbers are near, measured by the largest and by the dtype computed in."""
    assert ours.shape == plain.shape, what
    assert ours.dtype == plain.dtype, what
    if not plain.dtype.is_floating_point:
        assert torch.equal(ours, plain), what
        return
    bound = _SHARES[dtype or plain.dtype] * max(plain.abs().max().item(), 1e-3)
    assert (ours.float() - plain.float()).abs().max().item() <= bound, what


def assert_agree(
    ours: Callable[[], Tensor | tuple[Tensor, ...]],
    plain: Callable[[], Tensor | tuple[Tensor, ...]],
    leaves: Sequence[Tensor],
) -> None:
    """Fail unless both give the same values, and the same gradients for random ones of those."""
    coarsest = min((leaf.dtype for leaf in leaves), key=lambda dtype: dtype.itemsize)
    mine, theirs = _tuple(ours()), _tuple(plain())
    for index, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        assert_near(own, other, dtype=coarsest, what=f"values {index}")
    trained = [index for index, other in enumerate(theirs) if other.requires_grad]
    grads = [torch.randn_like(theirs[index]) for index in trained]
    found, expected = (
        torch.autograd.grad([side[index] for index in trained], leaves, grads)
        for side in (mine, theirs)
    )
    for index, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert_near(own, other, dtype=coarsest, what=f"gradient {index}")


def _tuple(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else values
