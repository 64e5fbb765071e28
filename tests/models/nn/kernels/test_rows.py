"""A row of a product is the same bits whatever rows stand beside it."""

import pytest
import torch
import torch.nn.functional as F

from models.nn.kernels import rows

HEIGHTS = (1, 5, 33, 64, 100, rows.SHARED_ROWS)


def product(x, weight, bias, *, linear=rows.linear):
    """Return the product and x's gradient, for a gradient that differs from row to row."""
    x = x.clone().requires_grad_()
    y = linear(x, weight, bias)
    y.backward(torch.sin(y.detach()))
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_knows_nothing_of_its_neighbours(dtype, biased):
    torch.manual_seed(0)
    x = torch.randn(rows.SHARED_ROWS, 576).to(dtype)
    weight = (torch.randn(320, 576) / 24).to(dtype)
    bias = torch.randn(320).to(dtype) if biased else None
    together = product(x, weight, bias)
    for height in HEIGHTS:
        for start in {0, rows.SHARED_ROWS - height, min(7, rows.SHARED_ROWS - height)}:
            piece = slice(start, start + height)
            for alone, side in zip(product(x[piece], weight, bias), together, strict=True):
                assert torch.equal(alone, side[piece])


@pytest.mark.parametrize("height", [1, 65, rows.SHARED_ROWS + 1])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_plain_product(height, biased):
    torch.manual_seed(0)
    x, weight = torch.randn(height, 24).double(), torch.randn(10, 24).double()
    bias = torch.randn(10).double() if biased else None
    found, expected = (product(x, weight, bias, linear=form) for form in (rows.linear, F.linear))
    torch.testing.assert_close(found, expected)


def test_a_bad_neighbour_stays_where_it_is():
    x, weight = torch.ones(3, 8), torch.ones(4, 8)
    x[1] = torch.nan
    for side in product(x, weight, None):
        assert torch.isfinite(side[[0, 2]]).all()
        assert torch.isnan(side[1]).all()
