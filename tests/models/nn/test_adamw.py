"""Steps of AdamW and norms, in C++ and by torch, against float64."""

from collections.abc import Iterator
from math import sqrt

import pytest
import torch
from torch import Tensor

from models.nn.adamw import Moments, Move, adamw, norm
from models.nn.kernels.native import adamw as native
from models.nn.kernels.native import load
from tests.models.nn.kernels.native.comparing import needs_avx512

RATE, DECAY = 0.01, 0.1


@pytest.fixture(params=["torch", pytest.param("native", marks=needs_avx512)])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have one of the forms."""
    if request.param == "torch":
        monkeypatch.setenv("GRAFTWORK_NATIVE", "off")
    load.cache_clear()
    yield
    load.cache_clear()


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


class Exact:
    """The paper's own words (algorithm 2), in float64."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.double()
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.number = 0

    def step(self, gradient: Tensor) -> None:
        self.number += 1
        g = gradient.double()
        self.mean = 0.9 * self.mean + 0.1 * g
        self.square = 0.999 * self.square + 0.001 * g**2
        mean = self.mean / (1 - 0.9**self.number)
        square = self.square / (1 - 0.999**self.number)
        moved = RATE * mean / (square.sqrt() + 1e-8)
        self.values = self.values - moved - RATE * DECAY * self.values


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1,), (31,), (64, 8), (2**16 + 47,), (1536, 577)], ids=str)
def test_values_and_moments_are_those_of_float64(size, dtype):
    values, rounded = drawn(*size, seed=0), drawn(*size, seed=1).bfloat16()
    exact, moments = Exact(values), Moments.before(values)
    for number in range(4):
        gradient = (30 * drawn(*size, seed=10 + number)).to(dtype)
        exact.step(gradient.double() / 7)
        given = Move(values, gradient, moments, rounded)
        adamw([given], rate=RATE, weight_decay=DECAY, divisor=torch.tensor(7.0))
    assert moments.step == 4
    torch.testing.assert_close(values.double(), exact.values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(moments.exp_avg.double(), exact.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(moments.exp_avg_sq.double(), exact.square, atol=1e-6, rtol=1e-5)
    assert torch.equal(rounded, values.bfloat16())


@pytest.mark.usefixtures("form")
def test_each_is_moved_by_its_own_gradient_and_none_writes_past_its_end():
    held, counts = drawn(500, seed=0), (1, 33, 95, 130)
    parts, before = [], held.clone()
    for number, count in enumerate(counts):
        part = held[100 * number : 100 * number + count]
        parts.append(Move(part, torch.full((count,), 2.0**number), Moments.before(part)))
    adamw(parts, rate=RATE, weight_decay=0.0)
    for part, count in zip(parts, counts, strict=True):
        assert (part.values < before[part.values.storage_offset() :][:count]).all()
    untouched = torch.ones(500, dtype=torch.bool)
    for number, count in enumerate(counts):
        untouched[100 * number : 100 * number + count] = False
    assert torch.equal(held[untouched], before[untouched])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [[(5,)], [(4096,), (3, 4097)], [(2000, 3001), (15,)]], ids=str)
def test_the_norm_is_that_of_float64(sizes, dtype):
    gradients = [drawn(*size, seed=number).to(dtype) for number, size in enumerate(sizes)]
    exact = sqrt(sum(each.double().square().sum().item() for each in gradients))
    assert norm(gradients).item() == pytest.approx(exact, rel=2e-6)


@needs_avx512
def test_what_does_not_lie_as_the_kernels_read_it_is_left_to_torch():
    values = torch.zeros(4, 4)
    assert native.takes(values, torch.ones(4, 4), None)
    assert not native.takes(values, torch.ones(4, 8)[:, ::2], None)
    assert not native.takes(values, torch.ones(4, 4, dtype=torch.float16), None)
    assert not native.takes(values, torch.ones(4, 4), torch.ones(4, 4, dtype=torch.float16))
    given = Move(values, torch.arange(32.0).view(4, 8)[:, ::2], Moments.before(values))
    adamw([given], rate=RATE, weight_decay=0.0)
    assert values[0, 0] == 0
    torch.testing.assert_close(values.view(-1)[1:], torch.full((15,), -RATE))
