"""Every form of an op that runs here has the values and gradients of its plain meaning."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F

from models.nn.kernels import Shift, Update, Weight, ops, reference
from models.nn.kernels.plain import PLAIN

FORMS = {"plain": PLAIN, "chosen": ops(torch.device("cpu"))}
BOUNDS = (0, 3, 40, 41, 77, 400)


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def draw(*size, seed=0, **options):
    """Draw float64 that bfloat16 holds too: rounded, what nearly cancels would be another task."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, generator=generator, dtype=torch.float64, **options)
    return drawn.bfloat16().double()


def leaves(*tensors, dtype):
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def check(form, op, make, *, dtype):
    """Compare values, and gradients of everything that `make` returns first, with float64's."""
    found = []
    for function, precision in (
        (getattr(reference, op), torch.float64),
        (getattr(form, op), dtype),
    ):
        given, call = make(precision)
        outputs = call(function)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [output for output in outputs if output.requires_grad]
        loss = sum(
            (output.double() * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()
            for output in outputs
        )
        found.append([*outputs, *torch.autograd.grad(loss, given)])
    bound = 1e-5 if dtype is torch.float32 else 2e-2
    for exact, rounded in zip(*found, strict=True):
        assert exact.shape == rounded.shape
        assert (rounded.double() - exact).norm() <= bound * exact.norm()


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("rows", [1, 70, 600])
@pytest.mark.parametrize("biased", [False, True])
def test_project(form, dtype, rows, biased):
    middle = rows // 2

    def make(precision):
        given = leaves(
            draw(rows, 64),
            *(draw(size, 64, seed=size) / 8 for size in (3, 4, 3)),
            *(draw(out, rank, seed=out) / 2 for out, rank in ((32, 3), (16, 4), (32, 3))),
            dtype=precision,
        )
        x, downs, ups = given[0], given[1:4], given[4:]
        keep = (draw(rows - middle, 64, seed=5) > 0).to(precision) * 2
        updates = [
            Update((0, middle), (0, 32), downs[0], ups[0], 0.5),
            Update((0, middle), (48, 64), downs[1], ups[1], 0.5),
            Update((middle, rows), (0, 32), downs[2], ups[2], 3.0, keep),
        ]
        weight = Weight(
            (draw(64, 64, seed=1) / 8).to(precision),
            draw(64, seed=2).to(precision) if biased else None,
        )
        if not middle:
            return [x, downs[2], ups[2]], lambda op: op(x, weight=weight, updates=updates[2:])
        return given, lambda op: op(x, weight=weight, updates=updates)

    check(form, "project", make, dtype=dtype)


@DTYPES
def test_project_by_a_weight_that_trains(form, dtype):
    def make(precision):
        given = leaves(draw(9, 64), draw(32, 64, seed=1), draw(32, seed=2), dtype=precision)
        return given, lambda op: op(given[0], weight=Weight(given[1], given[2]))

    check(form, "project", make, dtype=dtype)


def test_project_without_gradients_below(form):
    x, down, up = draw(5, 64).float(), draw(2, 64).float(), draw(32, 2).float().requires_grad_()
    weight = Weight(draw(32, 64).float())
    y = form.project(x, weight=weight, updates=[Update((1, 3), (0, 32), down, up, 1.0)])
    y.sum().backward()
    assert x.grad is None
    assert down.grad is None
    assert up.grad is not None
    assert not form.project(x, weight=weight).requires_grad


@DTYPES
@pytest.mark.parametrize("of_rows", [False, True])
def test_norms(form, dtype, of_rows):
    def make(precision):
        gain = draw(*((7, 64) if of_rows else (64,)), seed=3)
        given = leaves(draw(7, 64), draw(7, 64, seed=1), gain, dtype=precision)
        return given, lambda op: op(given[0], given[1], gain=given[2], epsilon=1e-5)

    check(form, "add_rms_norm", make, dtype=dtype)

    def make_alone(precision):
        given, _ = make(precision)
        return [given[0], given[2]], lambda op: op(given[0], gain=given[2], epsilon=1e-5)

    check(form, "rms_norm", make_alone, dtype=dtype)


def test_norms_with_gains_that_stay_float32(form):
    x, gain = draw(7, 64).bfloat16(), draw(64, seed=3).float().requires_grad_()
    y = form.rms_norm(x, gain=gain, epsilon=1e-5)
    assert y.dtype == x.dtype
    y.float().sum().backward()
    assert gain.grad.dtype == torch.float32


@DTYPES
def test_rotate(form, dtype):
    def make(precision):
        (heads,) = leaves(draw(9, 8, 16), dtype=precision)
        half = draw(9, 8, seed=1)
        angles = torch.cat([half, half], dim=-1)
        cos, sin = angles.cos().to(precision), angles.sin().to(precision)
        # The form may write into what it is given, which a leaf must not be.
        return [heads], lambda op: op(heads * 1, cos_th=cos, sin_th=sin, rotated=6)

    check(form, "rotate", make, dtype=dtype)


@DTYPES
def test_swiglu(form, dtype):
    def make(precision):
        (x,) = leaves(draw(9, 64), dtype=precision)
        return [x], lambda op: op(x)

    check(form, "swiglu", make, dtype=dtype)


@DTYPES
def test_scale_shift(form, dtype):
    def make(precision):
        given = leaves(
            draw(9, 64), draw(32, seed=1), draw(32, seed=2), draw(64, seed=3), dtype=precision
        )
        y, scale, shift, wide = given
        shifts = [
            Shift((0, 4), (0, 32), scale, shift),
            Shift((4, 8), (0, 64), wide, None),
            Shift((0, 4), (32, 64), None, shift),
        ]
        return given, lambda op: op(y * 1, shifts=shifts)

    check(form, "scale_shift", make, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("bounds", [BOUNDS, (0, 20), (0, 1), (0, 300, 301)])
@pytest.mark.parametrize("heads", [(9, 3), (2, 2)])
def test_attend_packed(form, dtype, bounds, heads):
    query, shared = heads

    def make(precision):
        (x,) = leaves(draw(bounds[-1], query + 2 * shared, 64), dtype=precision)
        return [x], lambda op: op(x, kv_heads=shared, bounds=bounds, scale=0.2)

    check(form, "attend_packed", make, dtype=dtype)


@DTYPES
@pytest.mark.parametrize(
    ("bounds", "parents"),
    [
        ((0, 20, 21, 84, 90), (-1, 0, 0, 2)),
        ((0, 5, 45, 50, 52), (-1, -1, 1, 0)),
        ((0, 280, 290, 300, 310), (-1, 0, 1, -1)),
    ],
)
def test_attend_packed_along_a_tree(form, dtype, bounds, parents):
    def make(precision):
        (x,) = leaves(draw(bounds[-1], 8, 64), dtype=precision)
        given = {"kv_heads": 2, "bounds": bounds, "parents": parents, "scale": 0.2}
        return [x], lambda op: op(x, **given)

    check(form, "attend_packed", make, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("start", [20, 270])
def test_gradients_of_a_start_are_summed_in_one_order(form, dtype, start):
    lengths, others, parents = (start, 10, 40, 70), (start, 70, 40, 10), (-1, 0, 0, 0)
    heads, up = (draw(sum(lengths), n, 64, seed=n).to(dtype) for n in (8, 4))

    def gradient(lengths, parents, *, repeats):
        x = heads.repeat(repeats, 1, 1).requires_grad_()
        bounds = tuple(accumulate(lengths, initial=0))
        given = {"kv_heads": 2, "bounds": bounds, "parents": parents, "scale": 0.2}
        form.attend_packed(x, **given).backward(up.repeat(repeats, 1, 1))
        return x.grad[-len(heads) :]

    behind = gradient(others + lengths, (*parents, -1, 4, 4, 4), repeats=2)
    assert torch.equal(behind, gradient(lengths, parents, repeats=1))


@DTYPES
@pytest.mark.parametrize("rows", [1, 65, 300])
def test_linear_cross_entropy(form, dtype, rows):
    targets = torch.arange(rows) % 96

    def make(precision):
        (x,) = leaves(draw(rows, 64), dtype=precision)
        weight = Weight((draw(96, 64, seed=1) / 4).to(precision))
        return [x], lambda op: op(x, weight=weight, targets_n=targets)

    check(form, "linear_cross_entropy", make, dtype=dtype)


def test_linear_cross_entropy_says_what_is_right_and_needs_no_gradient(form):
    x, weight = draw(70, 64).float(), Weight(draw(96, 64, seed=1).float())
    targets = F.linear(x, weight.weight_oi).argmax(-1)
    targets[3] = (targets[3] + 1) % 96
    losses, correct = form.linear_cross_entropy(x, weight=weight, targets_n=targets)
    assert not losses.requires_grad
    assert correct.tolist() == [row != 3 for row in range(70)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_know_their_neighbours(form, dtype):
    bounds = (0, 30, 60, 95)
    heads, x = draw(95, 15, 64).to(dtype), draw(95, 64).to(dtype)
    alone = form.attend_packed(heads[30:60], kv_heads=3, bounds=(0, 30), scale=0.2)
    together = form.attend_packed(heads, kv_heads=3, bounds=bounds, scale=0.2)
    assert torch.equal(together[30:60], alone)
    weight, targets = Weight(draw(96, 64, seed=1).to(dtype)), torch.arange(95)
    one, _ = form.linear_cross_entropy(x[30:60], weight=weight, targets_n=targets[30:60])
    all_of_them, _ = form.linear_cross_entropy(x, weight=weight, targets_n=targets)
    assert torch.equal(all_of_them[30:60], one)
