"""Products over laid-out weights are those of `F.linear`, and so is everything else."""

import pytest
import torch
import torch.nn.functional as F

from models.nn.kernels import prepacked
from models.nn.kernels.prepacked import Prepacked, is_worth_it

needs_it = pytest.mark.skipif(
    not is_worth_it(torch.zeros(1).bfloat16()), reason="this torch or processor has no such product"
)


@needs_it
@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_products_are_those_of_the_plain_form(rows: int, biased: bool) -> None:
    weight, x = torch.randn(48, 64).bfloat16(), torch.randn(2, rows, 64).bfloat16()
    bias = torch.randn(48).bfloat16() if biased else None
    multiply = Prepacked(weight)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for found in (multiply(x, weight, bias), multiply(x[0], weight, bias)):
        expected = exact if found.dim() == 3 else exact[0]
        assert (found.double() - expected).norm() / expected.norm() < 0.005


@needs_it
def test_another_weight_is_not_mistaken_for_the_one_laid_out() -> None:
    weight, other, x = (torch.randn(16, 16).bfloat16() for _ in range(3))
    assert torch.equal(Prepacked(weight)(x, other), F.linear(x, other))


def test_other_types_and_a_torch_without_the_operators_stay_plain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not is_worth_it(torch.zeros(1))
    prepacked._runs.cache_clear()
    monkeypatch.setattr(prepacked, "_lay_out", lambda _: torch.ops.mkldnn.no_such_operator())
    assert not is_worth_it(torch.zeros(1).bfloat16())
    prepacked._runs.cache_clear()
