"""The products of training by AMX tiles, whose instructions are emulated: how they are used."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from models.nn.kernels import Update, Weight, reference
from models.nn.kernels.native import (
    Library,
    attention,
    cross_entropy,
    library,
    project,
)
from tests.models.nn.kernels.native.comparing import (
    assert_close_to_exact,
    drawn,
    needs_avx512,
    threads,
)

pytestmark = needs_avx512


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library()
    assert found is not None
    emulated = Library(found.handle, forms=["emulated"])
    for module in (attention, cross_entropy, project):
        monkeypatch.setattr(module, "find", lambda: emulated)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What a team's caches hold depends on how many it has."""
    with threads(2):
        yield


@pytest.mark.parametrize("rows", [1, 37])
def test_products_with_updates(rows: int) -> None:
    middle = rows // 2

    def apply(form, x: Tensor, *given: Tensor) -> Tensor:
        updates = [Update((0, middle or rows), (0, 64), given[0], given[1], 2.0)]
        if not middle:
            updates.append(Update((0, rows), (64, 96), given[2], given[3], 1.0))
        weight = Weight(drawn(96, 64, seed=2, scale=0.2).to(x), drawn(96, seed=7).to(x))
        return form.project(x, weight=weight, updates=updates)

    matrices = [drawn(5, 64, seed=3), drawn(64, 5, seed=4)]
    if not middle:
        matrices += [drawn(33, 64, seed=5), drawn(32, 33, seed=6)]
    inputs = (drawn(rows, 64, seed=1), *matrices)
    assert_close_to_exact(partial(apply, project), partial(apply, reference), inputs)


@pytest.mark.parametrize(("rows", "outputs"), [(1, 48), (70, 176)])
def test_a_weight_that_trains(rows: int, outputs: int) -> None:
    def apply(form, x: Tensor, weight: Tensor) -> Tensor:
        return form.project(x, weight=Weight(weight))

    inputs = (drawn(rows, 64, seed=1), drawn(outputs, 64, seed=2, scale=0.2))
    assert_close_to_exact(partial(apply, project), partial(apply, reference), inputs)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("outputs", "inputs"), [(544, 32), (32, 544)])
def test_what_no_cache_holds_has_the_same_bits(outputs: int, inputs: int) -> None:
    weight = Weight(drawn(outputs, inputs, seed=2, scale=0.2))
    x, grad = drawn(1000, inputs, seed=1), drawn(1000, outputs, seed=3)

    def computed(rows: slice) -> tuple[Tensor, Tensor]:
        own = x[rows].clone().requires_grad_()
        y = project.project(own, weight=weight)
        y.backward(grad[rows])
        return y.detach(), own.grad

    whole, parts = computed(slice(0, 1000)), [computed(slice(i, i + 500)) for i in (0, 500)]
    for at_once, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(at_once, torch.cat(halves))


@pytest.mark.parametrize("parents", [(), (-1, -1, 1)])
def test_attention(parents: tuple[int, ...]) -> None:
    def attend(form, heads: Tensor) -> Tensor:
        given = {"bounds": [0, 1, 70, 90], "parents": parents, "scale": 0.2}
        return form.attend_packed(heads, kv_heads=2, **given)

    inputs = (drawn(90, 8, 32, seed=1),)
    assert_close_to_exact(partial(attend, attention), partial(attend, reference), inputs)


def test_cross_entropy() -> None:
    def losses(form, hidden: Tensor) -> Tensor:
        weight = Weight(drawn(2400, 64, seed=2, scale=0.3).to(hidden))
        return form.linear_cross_entropy(hidden, weight=weight, targets_n=torch.arange(19))[0]

    inputs = (drawn(19, 64, seed=1),)
    assert_close_to_exact(partial(losses, cross_entropy), partial(losses, reference), inputs)
