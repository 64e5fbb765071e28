"""Ops that keep bfloat16 for the backward: what they give of numbers that bfloat16 has."""

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import pointwise, short
from tests.models.nn.kernels.native.comparing import assert_threads_change_nothing, drawn

pytestmark = pytest.mark.usefixtures("avx2")


def rounded(full: Tensor) -> Tensor:
    return full.detach().bfloat16().float().requires_grad_()


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_inner_states_are_those_of_rounded_gates(rows: int) -> None:
    gate_up, grad = drawn(rows, 160, seed=1, scale=4.0), drawn(rows, 80, seed=2)
    wide = torch.cat([gate_up, gate_up], dim=1)[:, :160].requires_grad_()
    assert short.takes_swiglu(wide)
    inner, kept = short.swiglu(wide)
    near = rounded(gate_up)
    expected = pointwise.swiglu(near)
    assert torch.equal(kept.float(), near)
    assert torch.equal(inner, expected)
    assert torch.equal(short.swiglu_again(kept), inner)
    inner.backward(grad)
    expected.backward(grad)
    assert torch.equal(wide.grad, near.grad)
    assert_threads_change_nothing(lambda given: short.swiglu(given)[0], (gate_up,))


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_turned_heads_are_rounded(rows: int) -> None:
    heads, grad = drawn(rows, 6, 64, seed=1), drawn(rows, 5, 64, seed=2)
    own, theirs = (heads[:, 1:].detach().requires_grad_() for _ in range(2))
    angles = drawn(rows, 64, seed=3)
    given = {"cos_th": angles.cos(), "sin_th": angles.sin(), "rotated": 3}
    assert short.takes_rotate(own, given["cos_th"], given["sin_th"])
    turned, kept = short.rotate(own, **given)
    expected = pointwise.rotate(theirs, **given)
    assert torch.equal(kept, expected.bfloat16())
    assert torch.equal(turned, kept.float())
    turned.backward(grad)
    expected.backward(grad)
    assert torch.equal(own.grad, theirs.grad)


def test_where_float32_is_asked_for_nothing_is_rounded() -> None:
    torch.set_float32_matmul_precision("highest")
    assert not short.takes_swiglu(drawn(3, 64, seed=1))
