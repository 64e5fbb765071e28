import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.kernels import reference
from models.nn.kernels.table import Update, Weight
from models.nn.kernels.triton.project import project
from models.nn.kernels.triton.tiles import SLICE, TILE
from tests.models.nn.kernels.triton.agreement import DTYPES, assert_agree, draw, spread

INPUTS, OUTPUTS = 72, 100
RAGGED = (
    ((0, TILE + 6), (0, 60), 1),
    ((0, TILE + 6), (60, 90), 17),
    ((TILE + 6, TILE + 7), (60, 100), 5),
    ((TILE + 9, TILE + 9), (0, 100), 4),
    ((TILE + 20, TILE + 60), (0, 100), 33),
)
"""(rows, columns, rank): parts that share rows, one row, no row, and rows of the base between.

Not rank one of one row: all of a gradient hangs on one sum then, which may be next to nothing.
"""


def _updates(extents, dtype, scale=1.5):
    return [
        Update(
            rows,
            columns,
            draw(rank, INPUTS, dtype=dtype),
            draw(columns[1] - columns[0], rank, dtype=dtype),
            scale,
        )
        for rows, columns, rank in extents
    ]


def _weight(dtype):
    return Weight(
        draw(OUTPUTS, INPUTS, dtype=dtype, trains=False), draw(OUTPUTS, dtype=dtype, trains=False)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_of_all_ranks_share_one_product(dtype):
    torch.manual_seed(0)
    x, weight, updates = spread(TILE + 70, INPUTS, dtype=dtype), _weight(dtype), None
    updates = _updates(RAGGED, dtype)
    assert_agree(
        lambda: project(x, weight=weight, updates=updates),
        lambda: reference.project(x, weight=weight, updates=updates),
        [x, *(factor for update in updates for factor in (update.down_ri, update.up_or))],
    )


def test_gradients_of_many_rows_are_summed_slice_by_slice():
    torch.manual_seed(0)
    rows = SLICE + 3
    x, weight = draw(rows, INPUTS, dtype=torch.float32), _weight(torch.float32)
    (update,) = _updates([((0, rows), (0, OUTPUTS), 2)], torch.float32)
    assert_agree(
        lambda: project(x, weight=weight, updates=[update]),
        lambda: reference.project(x, weight=weight, updates=[update]),
        [x, update.down_ri, update.up_or],
    )


def test_a_single_column_may_lie_apart():
    torch.manual_seed(0)
    x, weight = draw(9, INPUTS, dtype=torch.float32), _weight(torch.float32)
    up = draw(OUTPUTS, 4, dtype=torch.float32, trains=False)[:, :1]
    down = draw(INPUTS, 3, dtype=torch.float32, trains=False).t()[:1]
    update = Update((0, 9), (0, OUTPUTS), down, up, 1.5)
    assert_agree(
        lambda: project(x, weight=weight, updates=[update]),
        lambda: reference.project(x, weight=weight, updates=[update]),
        [x],
    )


def test_only_what_trains_gets_a_gradient():
    torch.manual_seed(0)
    dtype = torch.float32
    x, weight = draw(9, INPUTS, dtype=dtype, trains=False), _weight(dtype)
    first, second = _updates([((0, 4), (0, OUTPUTS), 2), ((4, 9), (0, OUTPUTS), 3)], dtype)
    for frozen in (first.down_ri, first.up_or, second.down_ri):
        frozen.requires_grad_(False)
    assert_agree(
        lambda: project(x, weight=weight, updates=[first, second]),
        lambda: reference.project(x, weight=weight, updates=[first, second]),
        [second.up_or],
    )


def test_a_base_alone_is_the_librarys_product():
    weight = _weight(torch.float32)
    x = draw(3, INPUTS, dtype=torch.float32)
    assert torch.equal(project(x, weight=weight), reference.project(x, weight=weight))


def test_dropout_and_a_base_that_trains_are_left_to_the_plain_form():
    torch.manual_seed(0)
    x, weight = draw(9, INPUTS, dtype=torch.float32), _weight(torch.float32)
    (update,) = _updates([((2, 9), (0, OUTPUTS), 2)], torch.float32)
    kept = torch.empty(7, INPUTS, device=x.device).bernoulli_(0.5).mul_(2)
    dropped = update._replace(keep_ti=kept)
    weight.weight_oi.requires_grad_()
    for one in (update, dropped):
        assert_agree(
            lambda one=one: project(x, weight=weight, updates=[one]),
            lambda one=one: reference.project(x, weight=weight, updates=[one]),
            [x, weight.weight_oi, one.down_ri, one.up_or],
        )


def test_updates_of_no_rows_change_nothing():
    torch.manual_seed(0)
    x, weight = draw(9, INPUTS, dtype=torch.float32), _weight(torch.float32)
    updates = _updates([((4, 4), (0, OUTPUTS), 2)], torch.float32)
    assert_agree(
        lambda: project(x, weight=weight, updates=updates),
        lambda: reference.project(x, weight=weight, updates=updates),
        [x, updates[0].down_ri, updates[0].up_or],
    )


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    x, weight = draw(40, INPUTS, dtype=torch.float32, trains=False), _weight(torch.float32)
    one, other = _updates([((0, 8), (0, OUTPUTS), 3), ((8, 40), (0, OUTPUTS), 20)], torch.float32)
    both = project(x, weight=weight, updates=[one, other])
    changed = torch.cat([x[:8], torch.full_like(x[8:], float("nan"))])
    assert torch.equal(project(changed, weight=weight, updates=[one, other])[:8], both[:8])
