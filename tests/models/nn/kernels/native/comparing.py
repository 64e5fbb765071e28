"""What the tests of all C++ ops need: drawn tensors, gradients, closeness to float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import library

_LIBRARY = library()
needs_avx512 = pytest.mark.skipif(
    _LIBRARY is None or not _LIBRARY.trains, reason="there are no kernels with AVX512-BF16 here"
)
"""For the ops of training, and for tiles, also emulated ones."""


def drawn(*size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return numbers that bfloat16 holds, in the dtype that the kernels train in."""
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
    found = library()
    return numbers.bfloat16().to(torch.bfloat16 if found and found.trains else torch.float32)


def with_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the inputs' gradients of a fixed weighted sum of them."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in inputs]
    found = function(*leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    weights = [drawn(*output.shape, seed=99 + i) for i, output in enumerate(outputs)]
    torch.autograd.backward(outputs, [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)])
    return [output.detach() for output in outputs], [leaf.grad for leaf in leaves]


def assert_close_to_exact(
    native: Callable[..., Tensor | tuple[Tensor, ...]],
    plain: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    *,
    bound: float = 0.01,
) -> None:
    """The native form must be as near float64 as a few roundings to bfloat16 allow.

    In float32 it must be four times as near: products may round to 13 bits there.
    """
    bound = bound if inputs[0].dtype is torch.bfloat16 else bound / 4
    outputs, gradients = with_gradients(native, inputs)
    exact = with_gradients(plain, [leaf.double() for leaf in inputs])
    for found, wanted in zip(outputs + gradients, exact[0] + exact[1], strict=True):
        assert found.shape == wanted.shape
        error = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
        assert error < bound, f"{error:.4f} from float64"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_threads_change_nothing(
    native: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> None:
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(with_gradients(native, inputs))
    for other in results[1:]:
        for found, wanted in zip(other[0] + other[1], results[0][0] + results[0][1], strict=True):
            assert torch.equal(found, wanted)
