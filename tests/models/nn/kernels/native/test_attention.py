"""Packed causal attention in C++ against float64; a sequence beside others and alone."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from models.nn.kernels import reference
from models.nn.kernels.native import attention, load
from models.nn.kernels.plain import PLAIN
from tests.models.nn.kernels.native.comparing import (
    assert_close_to_exact,
    assert_threads_change_nothing,
    drawn,
    with_gradients,
)

pytestmark = pytest.mark.usefixtures("each_dtype")


def attend(
    form, heads: Tensor, *, kv_heads: int, bounds: Sequence[int], parents: Sequence[int] = ()
) -> Tensor:
    scale = heads.shape[2] ** -0.5
    return form.attend_packed(heads, kv_heads=kv_heads, bounds=bounds, scale=scale, parents=parents)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "bounds"),
    [
        (9, 3, 64, [0, 1]),
        (9, 3, 64, [0, 20, 21, 84, 133]),
        (4, 4, 32, [0, 65, 130]),
        (4, 1, 96, [0, 48, 160]),
        (2, 1, 128, [0, 300]),
    ],
)
def test_attention_is_that_of_float64(
    heads: int, kv_heads: int, size: int, bounds: list[int]
) -> None:
    inputs = (drawn(bounds[-1], heads + 2 * kv_heads, size, seed=1),)
    native, plain = (
        partial(attend, form, kv_heads=kv_heads, bounds=bounds) for form in (attention, reference)
    )
    assert_close_to_exact(native, plain, inputs)
    assert_threads_change_nothing(native, inputs)


@pytest.mark.parametrize(
    ("bounds", "parents"),
    [
        ([0, 20, 21, 84, 133], [-1, 0, 0, 2]),
        ([0, 100, 101, 180], [-1, 0, 0]),
        ([0, 7, 20, 90], [-1, -1, 0]),
    ],
)
def test_a_tree_of_sequences_is_that_of_float64(bounds: list[int], parents: list[int]) -> None:
    inputs = (drawn(bounds[-1], 8, 64, seed=1),)
    native, plain = (
        partial(attend, form, kv_heads=2, bounds=bounds, parents=parents)
        for form in (attention, reference)
    )
    assert_close_to_exact(native, plain, inputs)
    assert_threads_change_nothing(native, inputs)


def test_a_long_sequence_is_right() -> None:
    inputs = (drawn(2048, 3, 64, seed=1),)
    native, plain = (
        partial(attend, form, kv_heads=1, bounds=[0, 2048]) for form in (attention, reference)
    )
    assert_close_to_exact(native, plain, inputs)


def test_large_scores_leave_no_nan() -> None:
    heads = drawn(40, 6, 64, seed=1, scale=60.0)
    outputs, gradients = with_gradients(
        partial(attend, attention, kv_heads=2, bounds=[0, 40]), (heads,)
    )
    assert outputs[0].isfinite().all()
    assert gradients[0].isfinite().all()


def test_a_sequence_does_not_depend_on_its_company() -> None:
    rows, grads = drawn(120, 5, 64, seed=1), drawn(120, 3, 64, seed=2)

    def computed(start: int, stop: int, bounds: list[int]) -> tuple[Tensor, Tensor]:
        heads = rows[start:stop].clone().requires_grad_()
        output = attend(attention, heads, kv_heads=1, bounds=bounds)
        output.backward(grads[start:stop])
        return output.detach(), heads.grad

    output, grad = computed(0, 120, [0, 37, 99, 120])
    for start, stop in ((0, 37), (37, 99), (99, 120)):
        alone = computed(start, stop, [0, stop - start])
        assert torch.equal(output[start:stop], alone[0])
        assert torch.equal(grad[start:stop], alone[1])


def test_other_head_sizes_are_computed_plainly() -> None:
    heads = drawn(7, 4, 24, seed=1)
    native, plain = (attend(form, heads, kv_heads=1, bounds=[0, 7]) for form in (attention, PLAIN))
    assert torch.equal(native, plain)


def test_a_scale_may_be_whole() -> None:
    """Argument types are those of the first call: an integer would be passed as no float is."""
    heads = drawn(5, 3, 32, seed=1)
    load.cache_clear()
    whole, same = (
        attention.attend_packed(heads, kv_heads=1, bounds=[0, 5], scale=scale) for scale in (1, 1.0)
    )
    assert torch.equal(whole, same)
