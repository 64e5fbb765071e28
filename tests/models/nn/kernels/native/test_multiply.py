"""The products in float32 by AVX2 against float64, and their rows against themselves."""

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import multiply
from tests.models.nn.kernels.native.comparing import threads

pytestmark = pytest.mark.usefixtures("avx2")

BOUNDS = {"highest": 2e-6, "high": 5e-4}
"""By what precision is asked for: how far from float64 a product may be, over its norm."""


@pytest.fixture(params=list(BOUNDS), autouse=True)
def precision(request: pytest.FixtureRequest, avx2: None) -> str:
    torch.set_float32_matmul_precision(request.param)
    return request.param


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 7, 12, 75])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 16), (80, 576), (576, 1536), (48, 3072)])
@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_that_of_float64(
    rows: int, outputs: int, inputs: int, precision: str, *, transposed: bool
) -> None:
    x, bias = drawn(rows, inputs, seed=1), drawn(outputs, seed=3)
    weight = drawn(inputs, outputs, seed=2).t() if transposed else drawn(outputs, inputs, seed=2)
    assert multiply.takes(x, weight)
    for given in (None, bias):
        exact = torch.nn.functional.linear(
            x.double(), weight.double(), None if given is None else given.double()
        )
        error = (multiply.multiply(x, weight, given).double() - exact).norm() / exact.norm()
        assert error < BOUNDS[precision]


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


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_no_number_stays_so_and_where_it_is(bad: float, *, transposed: bool) -> None:
    x, weight = drawn(9, 256, seed=1), drawn(32, 256, seed=2)
    weight = weight.t().contiguous().t() if transposed else weight
    x[4, 200] = bad
    found = multiply.multiply(x, weight, None)
    assert found.isfinite().all(1).tolist() == [row != 4 for row in range(9)]
    x[4, 200], weight[3, 1] = 1.0, bad
    assert multiply.multiply(x, weight, None).isfinite().all(0).tolist() == [
        output != 3 for output in range(32)
    ]


def test_sums_are_exact_at_their_largest() -> None:
    """No sum of a group may wrap round: all numbers are the largest, of one sign."""
    x, weight = torch.full((3, 384), 7.5), torch.full((16, 384), -2.25)
    torch.testing.assert_close(
        multiply.multiply(x, weight, None), torch.full((3, 16), 384 * 7.5 * -2.25)
    )


def test_zeros_and_what_is_next_to_nothing_are_zeros() -> None:
    x = torch.tensor([0.0, 1e-38, -2.0, 1.0])[:, None].expand(4, 32).contiguous()
    weight = torch.tensor([0.0, 1e-38, 1.0] * 16)[:48, None].expand(48, 32).contiguous()
    found = multiply.multiply(x, weight, None)
    torch.testing.assert_close(found, x @ weight.t())


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(3, 16).bfloat16(), torch.ones(16, 16).bfloat16()),
        (torch.ones(3, 16), torch.ones(17, 16)),
        (torch.ones(3, 24), torch.ones(16, 24)),
        (torch.ones(16, 3).t(), torch.ones(16, 16)),
        (torch.ones(3, 16).double(), torch.ones(16, 16).double()),
    ],
)
def test_others_are_left_to_torch(x: Tensor, weight: Tensor) -> None:
    assert not multiply.takes(x, weight)
