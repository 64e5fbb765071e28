"""Linear layers with low-rank updates in C++ against float64; a job in company and alone."""

from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from models.nn.kernels import Update, Weight, reference
from models.nn.kernels.native import project
from models.nn.kernels.plain import PLAIN
from tests.models.nn.kernels.native.comparing import (
    assert_close_to_exact,
    assert_threads_change_nothing,
    drawn,
)

pytestmark = pytest.mark.usefixtures("each_dtype")

INPUTS, OUTPUTS = 96, 160
Rectangle = tuple[tuple[int, int], tuple[int, int], int]

ONE_JOB: list[Rectangle] = [((0, 33), (0, 96), 16), ((0, 33), (96, 160), 16)]
THREE_JOBS: list[Rectangle] = [
    ((0, 1), (0, 160), 8),
    ((1, 20), (0, 96), 5),
    ((1, 20), (128, 160), 33),
    ((25, 33), (32, 64), 1),
    ((25, 33), (96, 128), 24),
]


def matrices(rectangles: Sequence[Rectangle]) -> list[Tensor]:
    made = []
    for index, (_, columns, rank) in enumerate(rectangles):
        made.append(drawn(rank, INPUTS, seed=10 + index, scale=0.2))
        made.append(drawn(columns[1] - columns[0], rank, seed=50 + index, scale=0.5))
    return made


def apply(
    form, x: Tensor, *given: Tensor, rectangles: Sequence[Rectangle], bias: bool = False
) -> Tensor:
    weight = drawn(OUTPUTS, INPUTS, seed=2, scale=0.2).to(x)
    updates = [
        Update(rows, columns, given[2 * i], given[2 * i + 1], 0.5 + i)
        for i, (rows, columns, _) in enumerate(rectangles)
    ]
    layer = Weight(weight, drawn(OUTPUTS, seed=3).to(x) if bias else None)
    return form.project(x, weight=layer, updates=updates)


@pytest.fixture(params=["high", "highest"])
def precision(request: pytest.FixtureRequest, each_dtype: None) -> Iterator[str]:
    """Let products of float32 round, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("rectangles", [[], ONE_JOB, THREE_JOBS, THREE_JOBS[::-1]])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_float64(
    rectangles: list[Rectangle], bias: bool, precision: str
) -> None:
    native, plain = (
        partial(apply, form, rectangles=rectangles, bias=bias) for form in (project, reference)
    )
    inputs = (drawn(33, INPUTS, seed=1), *matrices(rectangles))
    exactly = precision == "highest" and inputs[0].dtype is torch.float32
    assert_close_to_exact(native, plain, inputs, bound=8e-6 if exactly else 0.01)
    assert_threads_change_nothing(native, inputs)


@pytest.mark.parametrize("outputs", [48, 176])
def test_outputs_that_do_not_fill_tiles_have_the_right_gradient(outputs: int) -> None:
    def apply(form, x: Tensor) -> Tensor:
        return form.project(x, weight=Weight(drawn(outputs, INPUTS, seed=2, scale=0.2).to(x)))

    native, plain = (partial(apply, form) for form in (project, reference))
    assert_close_to_exact(native, plain, (drawn(33, INPUTS, seed=1),))


def test_one_row_is_right() -> None:
    rectangles = [((0, 1), (0, 160), 16)]
    native, plain = (partial(apply, form, rectangles=rectangles) for form in (project, reference))
    assert_close_to_exact(native, plain, (drawn(1, INPUTS, seed=1), *matrices(rectangles)))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 48, 96), (70, 176, 32), (33, 96, 544)])
def test_a_weight_that_trains_has_the_right_gradient(rows: int, outputs: int, inputs: int) -> None:
    def apply(form, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return form.project(x, weight=Weight(weight, bias))

    native, plain = (partial(apply, form) for form in (project, reference))
    weight, bias = drawn(outputs, inputs, seed=2, scale=0.2), drawn(outputs, seed=3)
    given = (drawn(rows, inputs, seed=1), weight, bias)
    assert_close_to_exact(native, plain, given)
    assert_threads_change_nothing(native, given)


def test_rows_that_lie_apart_give_a_weight_the_same_gradient() -> None:
    x, grad = drawn(9, 64, seed=1), drawn(9, 32, seed=4)
    found = []
    for apart in (False, True):
        weight = drawn(32, 64, seed=2).requires_grad_()
        rows, upstream = (torch.cat([t, t], 1)[:, : t.shape[1]] if apart else t for t in (x, grad))
        project.project(rows, weight=Weight(weight)).backward(upstream)
        found.append(weight.grad)
    assert torch.equal(*found)


def test_a_job_does_not_depend_on_its_company() -> None:
    x, grad = drawn(33, INPUTS, seed=1), drawn(33, OUTPUTS, seed=4)
    given = matrices(THREE_JOBS)

    def computed(rows: slice, chosen: Sequence[int]) -> list[Tensor]:
        own = [x[rows].clone().requires_grad_()]
        own += [given[2 * i + side].clone().requires_grad_() for i in chosen for side in (0, 1)]
        updates = [
            Update(
                (THREE_JOBS[i][0][0] - rows.start, THREE_JOBS[i][0][1] - rows.start),
                THREE_JOBS[i][1],
                own[1 + 2 * n],
                own[2 + 2 * n],
                0.5 + i,
            )
            for n, i in enumerate(chosen)
        ]
        layer = Weight(drawn(OUTPUTS, INPUTS, seed=2))
        output = project.project(own[0], weight=layer, updates=updates)
        output.backward(grad[rows])
        return [output.detach(), *(leaf.grad for leaf in own)]

    together = computed(slice(0, 33), range(len(THREE_JOBS)))
    alone = computed(slice(1, 20), [1, 2])
    assert torch.equal(together[0][1:20], alone[0])
    assert torch.equal(together[1][1:20], alone[1])
    for found, wanted in zip(together[4:8], alone[2:], strict=True):
        assert torch.equal(found, wanted)


def test_rows_may_be_a_slice_and_frozen_inputs_get_no_gradient() -> None:
    wide, given = drawn(33, 2 * INPUTS, seed=1), [m.requires_grad_() for m in matrices(ONE_JOB)]
    output = apply(project, wide[:, INPUTS:], *given, rectangles=ONE_JOB)
    dense = apply(project, wide[:, INPUTS:].contiguous(), *given, rectangles=ONE_JOB)
    assert torch.equal(output, dense)
    output.sum().backward()
    assert all(matrix.grad is not None for matrix in given)


@pytest.mark.parametrize("frozen", [{2}, {4}, {3, 6}, {2, 4, 6}, set(range(1, 10))])
def test_gradients_do_not_depend_on_what_else_is_wanted(frozen: set[int]) -> None:
    x = drawn(33, INPUTS, seed=1)
    everything = [m.requires_grad_() for m in matrices(THREE_JOBS)]
    some = [m.requires_grad_(i not in frozen) for i, m in enumerate(matrices(THREE_JOBS))]
    for given in (everything, some):
        apply(project, x, *given, rectangles=THREE_JOBS).sum().backward()
    for i, (found, wanted) in enumerate(zip(some, everything, strict=True)):
        assert found.grad is None if i in frozen else torch.equal(found.grad, wanted.grad)


def test_dropped_inputs_are_those_of_the_plain_form() -> None:
    keep = (torch.arange(33 * INPUTS).view(33, INPUTS) % 3 > 0) * 1.5
    given = matrices(ONE_JOB)

    def apply_dropped(form, x: Tensor, *given: Tensor) -> Tensor:
        updates = [
            Update((0, 33), (0, 96), given[0], given[1], 2.0, keep.to(x)),
            Update((0, 33), (96, 160), given[2], given[3], 1.0),
        ]
        weight = drawn(OUTPUTS, INPUTS, seed=2, scale=0.2).to(x)
        return form.project(x, weight=Weight(weight), updates=updates)

    native, plain = (partial(apply_dropped, form) for form in (project, reference))
    assert_close_to_exact(native, plain, (drawn(33, INPUTS, seed=1), *given))


def test_updates_that_lie_otherwise_are_added_to_our_own_product(monkeypatch) -> None:
    def apply_odd(form, x: Tensor, *given: Tensor) -> Tensor:
        updates = [
            Update((0, 9), (0, 96), given[0].T, given[1], 2.0),  # columns side by side
            Update((9, 20), (8, 40), given[2], given[3], 1.0),  # between panels
            Update((20, 33), (0, 96), given[4], given[1], 1.0),
        ]
        return form.project(x, weight=Weight(drawn(OUTPUTS, INPUTS, seed=2).to(x)), updates=updates)

    given = (
        drawn(INPUTS, 16, seed=5),
        drawn(96, 16, seed=6),
        drawn(8, INPUTS, seed=8),
        drawn(32, 8, seed=7),
        drawn(16, INPUTS, seed=9),
    )
    native, plain = (partial(apply_odd, form) for form in (project, reference))
    x = drawn(33, INPUTS, seed=1)
    assert_close_to_exact(native, plain, (x, *given))
    assert project.keeps_rows_apart(Weight(drawn(OUTPUTS, INPUTS, seed=2)))
    monkeypatch.setattr(project, "PLAIN", None)  # nor is anything left to it
    native(x, *given)


def test_weights_that_do_not_fill_steps_are_left_to_plain_torch() -> None:
    odd = Weight(drawn(OUTPUTS - 8, INPUTS, seed=2))
    assert not project.keeps_rows_apart(odd)
    x = drawn(3, INPUTS, seed=1)
    assert torch.equal(project.project(x, weight=odd), PLAIN.project(x, weight=odd))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_train_get_their_gradients(bias: bool) -> None:
    def apply_trained(form, x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        shift, given = (rest[0], rest[1:]) if bias else (None, rest)
        update = Update((0, 33), (0, 96), given[0], given[1], 2.0)
        return form.project(x, weight=Weight(weight, shift), updates=[update])

    native, plain = (partial(apply_trained, form) for form in (project, reference))
    trained = [drawn(OUTPUTS, INPUTS, seed=2, scale=0.2), *([drawn(OUTPUTS, seed=3)] * bias)]
    inputs = (drawn(33, INPUTS, seed=1), *trained, *matrices(ONE_JOB)[:2])
    assert_close_to_exact(native, plain, inputs)
