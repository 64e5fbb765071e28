"""What is computed again in the backward: the same gradients, and nothing kept for them."""

import weakref
from functools import partial

import torch

from models.nn.again import again


def test_gradients_are_the_same_and_the_result_is_not_kept() -> None:
    x_td = torch.randn(5, 8, requires_grad=True)
    weight_dd = torch.randn(8, 8, requires_grad=True)
    (_Tanh.apply(x_td) @ weight_dd).square().sum().backward()
    expected, x_td.grad, weight_dd.grad = (x_td.grad, weight_dd.grad), None, None

    inner_td = _Tanh.apply(x_td)
    calls: list[None] = []

    def compute() -> torch.Tensor:
        calls.append(None)
        return x_td.detach().tanh()

    with again(inner_td, compute):
        y_td = inner_td @ weight_dd
    kept = weakref.ref(inner_td)
    del inner_td
    assert kept() is None
    assert not calls
    y_td.square().sum().backward()
    assert len(calls) == 1
    for found, wanted in zip((x_td.grad, weight_dd.grad), expected, strict=True):
        assert torch.equal(found, wanted)


def test_others_are_kept_as_they_are() -> None:
    x_td = torch.randn(5, 8, requires_grad=True)
    with again(torch.empty(5, 8), partial(torch.zeros, 5, 8)):
        y_td = x_td * x_td
    y_td.sum().backward()
    assert x_td.grad is not None
    assert torch.equal(x_td.grad, 2 * x_td.detach())


class _Tanh(torch.autograd.Function):
    """Saves its input alone."""

    @staticmethod
    def forward(ctx, x_td):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x_td)
        return x_td.tanh()

    @staticmethod
    def backward(ctx, grad_td):  # type: ignore[no-untyped-def]
        (x_td,) = ctx.saved_tensors
        return grad_td * (1 - x_td.tanh().square())
