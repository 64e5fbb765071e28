import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.kernels import reference
from models.nn.kernels.table import Weight
from models.nn.kernels.triton.linear_cross_entropy import linear_cross_entropy
from models.nn.kernels.triton.rms_norm import add_rms_norm, rms_norm
from models.nn.kernels.triton.rotate import rotate
from models.nn.kernels.triton.swiglu import swiglu
from tests.models.nn.kernels.triton.agreement import DTYPES, assert_agree, draw, spread

ROWS, HIDDEN = 5, 72


def _gain(sizes, dtype):
    return (draw(*sizes, dtype=dtype, trains=False) + 1).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(HIDDEN,), (ROWS, HIDDEN)], ids=["one", "by row"])
def test_norms_agree(dtype, sizes):
    torch.manual_seed(0)
    x, y = spread(ROWS, HIDDEN, dtype=dtype), draw(ROWS, HIDDEN, dtype=dtype)
    for gain in (_gain(sizes, dtype), _gain(sizes, torch.float32)):
        arguments = {"gain": gain, "epsilon": 1e-5}
        assert_agree(
            lambda a=arguments: rms_norm(x, **a),
            lambda a=arguments: reference.rms_norm(x, **a),
            [x, gain],
        )
        assert_agree(
            lambda a=arguments: add_rms_norm(x, y, **a),
            lambda a=arguments: reference.add_rms_norm(x, y, **a),
            [x, y, gain],
        )


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_norm_that_overflows_is_no_number():
    x = draw(ROWS, HIDDEN, dtype=torch.float32, trains=False)
    x[1] = 1e30
    gain = _gain((HIDDEN,), torch.float32)
    for form in (rms_norm, reference.rms_norm):
        normed = form(x, gain=gain, epsilon=1e-5)
        assert normed.isnan().all(1).tolist() == [False, True, False, False, False]


def test_a_norm_or_a_sum_that_nobody_reads_gives_no_gradient():
    torch.manual_seed(0)
    x, y = (draw(ROWS, HIDDEN, dtype=torch.float32) for _ in range(2))
    gain = _gain((HIDDEN,), torch.float32).detach()
    for read in (0, 1):
        assert_agree(
            lambda read=read: add_rms_norm(x, y, gain=gain, epsilon=1e-5)[read],
            lambda read=read: reference.add_rms_norm(x, y, gain=gain, epsilon=1e-5)[read],
            [x, y],
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations_agree(dtype):
    torch.manual_seed(0)
    heads = draw(ROWS, 11 * 24, dtype=dtype)
    angles = torch.rand(ROWS, 12, device=heads.device).repeat(1, 2) * 6
    turns = {"cos_th": angles.cos().to(dtype), "sin_th": angles.sin().to(dtype), "rotated": 9}
    assert_agree(
        lambda: rotate(heads.view(ROWS, 11, 24), **turns),
        lambda: reference.rotate(heads.view(ROWS, 11, 24), **turns),
        [heads],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_units_agree(dtype):
    torch.manual_seed(0)
    gate_up = spread(ROWS, 2 * 1100, dtype=dtype)
    assert_agree(lambda: swiglu(gate_up), lambda: reference.swiglu(gate_up), [gate_up])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
def test_cross_entropy_has_every_rows_own_gradient(dtype, biased):
    torch.manual_seed(0)
    hidden, targets = draw(ROWS, HIDDEN, dtype=dtype), torch.randint(0, 50, (ROWS,))
    bias = draw(50, dtype=dtype, trains=False) if biased else None
    weight = Weight(draw(50, HIDDEN, dtype=dtype, trains=False) * 8, bias)
    targets = targets.to(hidden.device)
    arguments = {"weight": weight, "targets_n": targets}
    assert_agree(
        lambda: linear_cross_entropy(hidden, **arguments),
        lambda: reference.linear_cross_entropy(hidden, **arguments),
        [hidden],
    )


def test_cross_entropy_without_gradients_gives_losses_and_hits():
    torch.manual_seed(0)
    hidden = draw(ROWS, HIDDEN, dtype=torch.float32, trains=False)
    weight = Weight(draw(50, HIDDEN, dtype=torch.float32, trains=False))
    targets = (hidden @ weight.weight_oi.T).argmax(-1)
    targets[0] = (targets[0] + 1) % 50
    losses, hits = linear_cross_entropy(hidden, weight=weight, targets_n=targets)
    plain, _ = reference.linear_cross_entropy(hidden, weight=weight, targets_n=targets)
    torch.testing.assert_close(losses, plain)
    assert hits.tolist() == [False, *[True] * (ROWS - 1)]
