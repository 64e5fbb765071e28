import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.bank import Layout
from models.nn.kernels import reference
from models.nn.kernels.triton.bottleneck import bottleneck
from models.nn.kernels.triton.low_rank import low_rank
from tests.models.nn.kernels.triton.agreement import (
    DEVICE,
    DTYPES,
    assert_near,
    draw,
    far_apart,
    spread,
)

ROWS, INPUTS, OUTPUTS = 40, 72, 100
LAYOUT = Layout(((1, 5, 0.5), (2, 33, 2.0), (4, 16, 1.0)))
"""Ragged ranks; nobody has slot 3 here, as where an adapter does not act at a place."""
RANKS = 54


def _slots():
    """The base, owners of all ranks, and a slot without columns; the last tile is the base's."""
    slots = torch.randint(0, 5, (ROWS,))
    slots[32:] = 0
    return slots.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_has_the_low_rank_update_of_its_slot(dtype):
    torch.manual_seed(0)
    y, x = draw(ROWS, OUTPUTS, dtype=dtype), spread(ROWS, INPUTS, dtype=dtype)
    down, up = draw(RANKS, INPUTS, dtype=dtype), draw(OUTPUTS, RANKS, dtype=dtype)
    slots = _slots()
    weight = LAYOUT.weight(slots)
    with torch.no_grad():
        ours, plain = (
            form(y, x, down_ri=down, up_or=up, weight=weight)
            for form in (low_rank, reference.low_rank)
        )
    assert_near(ours, plain)
    assert torch.equal(ours[(slots == 0) | (slots == 3)], y[(slots == 0) | (slots == 3)])


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_has_the_bottleneck_of_its_slot(dtype, activation):
    torch.manual_seed(0)
    y, z = draw(ROWS, INPUTS, dtype=dtype), spread(ROWS, INPUTS, dtype=dtype)
    terms = {
        "down_md": draw(RANKS, INPUTS, dtype=dtype),
        "down_bias_m": draw(RANKS, dtype=dtype),
        "activation": activation,
        "up_dm": draw(INPUTS, RANKS, dtype=dtype),
        "weight": LAYOUT.weight(_slots()),
    }
    with torch.no_grad():
        assert_near(bottleneck(y, z, **terms), reference.bottleneck(y, z, **terms))


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)

    def drawn(*sizes):
        """Return what any order of summing gives the same: the interpreter's order is numpy's."""
        number = draw(*sizes, dtype=torch.float32)
        return number if DEVICE == "cuda" else (number * 64).round()

    y, x = drawn(ROWS, OUTPUTS), drawn(ROWS, INPUTS)
    factors = {"down_ri": drawn(RANKS, INPUTS), "up_or": drawn(OUTPUTS, RANKS)}
    weight, order = LAYOUT.weight(_slots()), torch.randperm(ROWS)
    with torch.no_grad():
        ours = low_rank(y, x, weight=weight, **factors)
        moved = low_rank(y[order], x[order], weight=weight[order], **factors)
        single = low_rank(y[:1], x[:1], weight=weight[:1], **factors)
    assert torch.equal(moved, ours[order])
    assert torch.equal(single, ours[:1])


def test_a_row_may_begin_2_to_the_31_numbers_behind_the_first():
    torch.manual_seed(0)
    sizes = (3, OUTPUTS), (3, INPUTS), (RANKS, INPUTS), (OUTPUTS, RANKS)
    y, x, down, up = (draw(*size, dtype=torch.bfloat16, trains=False) for size in sizes)
    weight = LAYOUT.weight(torch.ones(3, dtype=torch.long, device=DEVICE))
    near, far = (
        low_rank(y, rows, down_ri=down, up_or=up, weight=weight) for rows in (x, far_apart(x))
    )
    assert torch.equal(far, near)


def test_one_adapter_alone_and_gradients_of_mixed_rows_are_left_to_the_plain_form():
    torch.manual_seed(0)
    dtype = torch.float32
    y, x = draw(ROWS, OUTPUTS, dtype=dtype), draw(ROWS, INPUTS, dtype=dtype)
    down, up = draw(RANKS, INPUTS, dtype=dtype), draw(OUTPUTS, RANKS, dtype=dtype)
    for weight in (0.5, LAYOUT.weight(_slots())):
        ours, plain = (
            form(y, x, down_ri=down, up_or=up, weight=weight)
            for form in (low_rank, reference.low_rank)
        )
        assert torch.equal(ours, plain)
        assert ours.requires_grad
