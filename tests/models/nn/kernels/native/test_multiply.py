"""The product in float32 by AVX2 against float64, and its rows against themselves."""

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import library, multiply
from tests.models.nn.kernels.native.comparing import threads

_LIBRARY = library()
pytestmark = pytest.mark.skipif(
    _LIBRARY is None or _LIBRARY.trains, reason="training is in bfloat16 here, or not in C++"
)


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 7, 12, 75])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 8), (80, 576), (576, 1536), (48, 3072)])
@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_that_of_float64(
    rows: int, outputs: int, inputs: int, *, transposed: bool
) -> None:
    x, bias = drawn(rows, inputs, seed=1), drawn(outputs, seed=3)
    weight = drawn(inputs, outputs, seed=2).t() if transposed else drawn(outputs, inputs, seed=2)
    assert multiply.takes(x, weight)
    for given in (None, bias):
        exact = torch.nn.functional.linear(
            x.double(), weight.double(), None if given is None else given.double()
        )
        found = multiply.multiply(x, weight, given)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * inputs**0.5)


def test_row_does_not_depend_on_its_company_nor_on_threads() -> None:
    x, weight = drawn(70, 576, seed=1), drawn(208, 576, seed=2)
    together = multiply.multiply(x, weight, None)
    for first, last in ((0, 1), (3, 5), (10, 27), (1, 70)):
        assert torch.equal(multiply.multiply(x[first:last], weight, None), together[first:last])
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(multiply.multiply(x, weight, None), together)


def test_rows_and_weight_may_lie_in_wider_ones() -> None:
    wide, long = drawn(11, 128, seed=1), drawn(64, 128, seed=2)
    found = multiply.multiply(wide[:, 64:], long[:, 64:], None)
    whole = multiply.multiply(wide[:, 64:].contiguous(), long[:, 64:].contiguous(), None)
    assert torch.equal(found, whole)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(3, 8).bfloat16(), torch.ones(16, 8).bfloat16()),
        (torch.ones(3, 8), torch.ones(17, 8)),
        (torch.ones(3, 12), torch.ones(16, 12)),
        (torch.ones(8, 3).t(), torch.ones(16, 8)),
        (torch.ones(3, 8).double(), torch.ones(16, 8).double()),
    ],
)
def test_others_are_left_to_torch(x: Tensor, weight: Tensor) -> None:
    assert not multiply.takes(x, weight)
