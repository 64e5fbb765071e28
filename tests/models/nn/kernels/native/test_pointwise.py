"""Norms, rotations, gates and scales in C++ against float64, at odd sizes and thread counts."""

from functools import partial

import pytest
import torch
from torch import Tensor

from models.nn.kernels import Shift, reference
from models.nn.kernels.native import pointwise
from models.nn.kernels.plain import PLAIN
from tests.models.nn.kernels.native.comparing import (
    assert_close_to_exact,
    assert_threads_change_nothing,
    drawn,
    with_gradients,
)

pytestmark = pytest.mark.usefixtures("each_dtype")

ROWS = [1, 7, 50]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shared", [True, False])
def test_norms_are_those_of_float64(rows: int, shared: bool) -> None:
    x, y = drawn(rows, 96, seed=1), drawn(rows, 96, seed=2)
    gain = drawn(96, seed=3) if shared else drawn(rows, 96, seed=3)

    def norm(form, x: Tensor, gain: Tensor) -> Tensor:
        return form.rms_norm(x, gain=gain, epsilon=1e-5)

    def add(form, x: Tensor, y: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        return form.add_rms_norm(x, y, gain=gain, epsilon=1e-5)

    for call, inputs in ((norm, (x, gain)), (add, (x, y, gain))):
        assert_close_to_exact(partial(call, pointwise), partial(call, reference), inputs)
        assert_threads_change_nothing(partial(call, pointwise), inputs)


def test_float32_gains_keep_their_dtype_and_one_gain_may_be_expanded() -> None:
    x, gain = drawn(5, 64, seed=1), drawn(64, seed=2).float()

    def expanded(x: Tensor, gain: Tensor) -> Tensor:
        return pointwise.rms_norm(x, gain=gain.expand(5, -1), epsilon=1e-5)

    def shared(x: Tensor, gain: Tensor) -> Tensor:
        return pointwise.rms_norm(x, gain=gain, epsilon=1e-5)

    found, wanted = (with_gradients(form, (x, gain)) for form in (expanded, shared))
    assert torch.equal(found[0][0], wanted[0][0])
    assert found[1][1].dtype is torch.float32
    torch.testing.assert_close(found[1][1], wanted[1][1])


def test_a_sum_that_alone_goes_on_passes_its_gradient() -> None:
    x, y = (drawn(3, 32, seed=seed).requires_grad_() for seed in (1, 2))
    _, total = pointwise.add_rms_norm(x, y, gain=drawn(32), epsilon=1e-5)
    total.backward(drawn(3, 32, seed=4))
    assert torch.equal(x.grad, drawn(3, 32, seed=4))
    assert torch.equal(y.grad, x.grad)


def test_a_norm_that_overflows_is_no_number() -> None:
    x = drawn(3, 64, seed=1)
    x[1] = 1e30
    normed = pointwise.rms_norm(x, gain=drawn(64, seed=2), epsilon=1e-5)
    assert normed.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("rows", ROWS)
def test_rotation_is_that_of_float64(rows: int) -> None:
    angles = torch.rand(rows, 32).repeat(1, 2)
    cosines, sines = angles.cos().bfloat16(), angles.sin().bfloat16()

    def turn(form, heads: Tensor) -> Tensor:
        cos_th, sin_th = cosines.to(heads), sines.to(heads)
        return form.rotate(heads, cos_th=cos_th, sin_th=sin_th, rotated=3)

    native, plain = partial(turn, pointwise), partial(turn, reference)
    inputs = (drawn(rows, 5, 64, seed=1),)
    assert_close_to_exact(native, plain, inputs)
    assert_threads_change_nothing(native, inputs)
    wide = drawn(rows, 6, 64, seed=2)
    assert torch.equal(native(wide[:, 1:]), native(wide[:, 1:].contiguous()))


@pytest.mark.parametrize("rows", ROWS)
def test_gate_is_that_of_float64(rows: int) -> None:
    gate_up = drawn(rows, 160, seed=1, scale=4.0)
    assert_close_to_exact(pointwise.swiglu, reference.swiglu, (gate_up,))
    assert_threads_change_nothing(pointwise.swiglu, (gate_up,))


def test_gate_saturates_without_a_nan() -> None:
    gate_up = torch.tensor([-3e38, -100.0, 0.0, 100.0] * 8 + [1.0] * 32).bfloat16()[None]
    gate_up.requires_grad_()
    inner = pointwise.swiglu(gate_up)
    inner.sum().backward()
    assert inner[0, :4].tolist() == [0.0, 0.0, 0.0, 100.0]
    assert gate_up.grad.isfinite().all()


def test_scales_and_shifts_are_those_of_float64() -> None:
    y = drawn(9, 96, seed=1)
    vectors = [drawn(48, seed=2), drawn(48, seed=3), drawn(32, seed=4), drawn(96, seed=5)]

    def act(form, y: Tensor, *given: Tensor) -> Tensor:
        pieces = [
            Shift((0, 4), (48, 96), given[0], given[1]),
            Shift((0, 4), (0, 32), given[2], None),
            Shift((5, 9), (0, 96), None, given[3]),
        ]
        return form.scale_shift(y, shifts=pieces)

    inputs = (y, *vectors)
    assert_close_to_exact(partial(act, pointwise), partial(act, reference), inputs)
    assert_threads_change_nothing(partial(act, pointwise), inputs)


def test_other_dtypes_and_sizes_are_computed_plainly() -> None:
    x, gain = torch.randn(3, 32).half(), torch.randn(32)
    found = pointwise.rms_norm(x, gain=gain, epsilon=1e-5)
    assert torch.equal(found, PLAIN.rms_norm(x, gain=gain, epsilon=1e-5))
    odd = drawn(3, 30, seed=1)
    assert torch.equal(pointwise.swiglu(odd), PLAIN.swiglu(odd))
