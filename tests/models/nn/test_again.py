"""What is computed again in the backward: the same gradients, and nothing kept for them."""

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.nn.again import again, rotate, swiglu
from models.nn.autograd import apply
from models.nn.kernels import ops
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


def test_an_op_that_keeps_its_own_output_goes_without_a_backward() -> None:
    x_td = torch.randn(5, 8, requires_grad=True)
    another_td = torch.empty(5, 8)
    with again(another_td, partial(torch.zeros, 5, 8)):
        y_td = apply(_Exponential, x_td)
    kept = weakref.ref(y_td)
    del y_td
    assert kept() is None


def test_a_transpose_of_the_result_is_another() -> None:
    x_dd = torch.randn(8, 8, requires_grad=True)
    with again(x_dd, partial(torch.zeros, 8, 8)):
        y_dd = x_dd.t() * x_dd.t()
    (found,) = torch.autograd.grad(y_dd.sum(), x_dd)
    assert torch.equal(found, 2 * x_dd.detach())


@pytest.fixture(params=["high", "highest"])
def rounds(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether what is kept is rounded here: where products of float32 are, which are our own."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    found = library()
    yield found is not None and not found.trains and request.param == "high"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inner_states_are_computed_again_to_the_bit(rounds: bool, dtype: torch.dtype) -> None:
    given_tm = torch.randn(7, 64, dtype=dtype)
    rounds &= dtype is torch.float32
    seen_tm = given_tm.bfloat16().to(dtype) if rounds else given_tm
    table = ops(given_tm.device)
    given_tm.requires_grad_()
    inner_tm, compute = swiglu(table, given_tm)
    assert compute().dtype is dtype
    assert torch.equal(compute(), inner_tm)
    assert torch.equal(inner_tm, table.swiglu(seen_tm))
    (found,) = _gradients(inner_tm, given_tm)
    seen_tm = seen_tm.detach().requires_grad_()
    (expected,) = _gradients(table.swiglu(seen_tm), seen_tm)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turned_heads_are_given_back_to_the_bit(rounds: bool, dtype: torch.dtype) -> None:
    wide_tgh = torch.randn(7, 6, 32, dtype=dtype)
    angles_th = torch.randn(7, 32, dtype=dtype)
    angles = {"cos_th": angles_th.cos(), "sin_th": angles_th.sin(), "rotated": 3}
    rounds &= dtype is torch.float32
    table = ops(wide_tgh.device)
    heads_tgh = wide_tgh[:, 1:].requires_grad_()
    turned_tgh, read = rotate(table, heads_tgh, **angles)
    own_tgh = heads_tgh.detach().requires_grad_()
    expected_tgh = table.rotate(own_tgh, **angles)
    exact = expected_tgh.detach()
    assert torch.equal(turned_tgh, exact.bfloat16().to(dtype) if rounds else exact)
    assert read().dtype is dtype
    assert torch.equal(read(), turned_tgh)
    grad_tgh = torch.randn_like(exact)
    (found,) = torch.autograd.grad(turned_tgh, heads_tgh, grad_tgh)
    (expected,) = torch.autograd.grad(expected_tgh, own_tgh, grad_tgh)
    assert torch.equal(found, expected)


def test_half_the_bytes_are_kept_where_products_round(rounds: bool) -> None:
    gate_up_tm = torch.randn(7, 64, requires_grad=True)
    inner_tm, compute = swiglu(ops(gate_up_tm.device), full := gate_up_tm * 1)
    given = weakref.ref(full)
    del full
    assert (given() is None) == rounds
    assert compute().shape == inner_tm.shape


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


class _Exponential(torch.autograd.Function):
    """Keeps what it gives."""

    @staticmethod
    def forward(ctx: Any, x_td: Tensor) -> Tensor:
        y_td = x_td.exp()
        ctx.save_for_backward(y_td)
        return y_td

    @staticmethod
    def backward(ctx: Any, grad_td: Tensor) -> Tensor:
        (y_td,) = ctx.saved_tensors
        return grad_td * y_td
