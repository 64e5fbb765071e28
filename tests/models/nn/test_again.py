"""What is computed again in the backward: the same gradients, and nothing kept for them."""

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.nn.again import again, shorten
from models.nn.autograd import apply
from models.nn.kernels.native import library


def test_gradients_are_the_same_and_the_result_is_not_kept() -> None:
    x_td = torch.randn(5, 8, requires_grad=True)
    weight_dd = torch.randn(8, 8, requires_grad=True)
    expected = _gradients(apply(_Tanh, x_td) @ weight_dd, x_td, weight_dd)
    calls: list[None] = []

    def compute() -> Tensor:
        calls.append(None)
        return x_td.detach().tanh()

    inner_td = apply(_Tanh, x_td)
    with again(inner_td, compute):
        y_td = inner_td @ weight_dd
    kept = weakref.ref(inner_td)
    del inner_td
    assert kept() is None
    assert not calls
    found = _gradients(y_td, x_td, weight_dd)
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_others_are_kept_as_they_are() -> None:
    x_td = torch.randn(5, 8, requires_grad=True)
    with again(torch.empty(5, 8), partial(torch.zeros, 5, 8)):
        y_td = x_td * x_td
    (found,) = torch.autograd.grad(y_td.sum(), x_td)
    assert torch.equal(found, 2 * x_td.detach())


def test_a_transpose_of_the_result_is_another() -> None:
    x_dd = torch.randn(8, 8, requires_grad=True)
    with again(x_dd, partial(torch.zeros, 8, 8)):
        y_dd = x_dd.t() * x_dd.t()
    (found,) = torch.autograd.grad(y_dd.sum(), x_dd)
    assert torch.equal(found, 2 * x_dd.detach())


@pytest.mark.parametrize(
    ("precision", "dtype", "rounds"),
    [
        ("high", torch.float32, True),
        ("highest", torch.float32, False),
        ("high", torch.bfloat16, False),
    ],
)
def test_where_products_may_round_a_tensor_becomes_what_half_the_bytes_give_back(
    precision: str, dtype: torch.dtype, rounds: bool
) -> None:
    before = torch.get_float32_matmul_precision()
    given = torch.randn(5, 8, dtype=dtype)
    full = given.clone()
    try:
        torch.set_float32_matmul_precision(precision)
        read = shorten(full)
    finally:
        torch.set_float32_matmul_precision(before)
    rounds &= library() is not None
    assert torch.equal(full, given.bfloat16().to(dtype) if rounds else given)
    assert read().dtype is dtype
    assert torch.equal(read(), full)
    assert (read().data_ptr() != full.data_ptr()) == rounds


class _Tanh(torch.autograd.Function):
    """Saves its input alone."""

    @staticmethod
    def forward(ctx: Any, x_td: Tensor) -> Tensor:
        ctx.save_for_backward(x_td)
        return x_td.tanh()

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor) -> Tensor:
        x_td: Tensor = ctx.saved_tensors[0]
        return grad_td * (1 - x_td.tanh().square())


def _gradients(y_td: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y_td.square().sum(), leaves)
