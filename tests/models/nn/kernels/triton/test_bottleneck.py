import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.kernels import reference
from models.nn.kernels.triton.bottleneck import bottleneck
from tests.models.nn.kernels.triton.agreement import DEVICE, DTYPES, assert_agree, draw, spread

ROWS, HIDDEN = 37, 72


def _terms(middle, dtype):
    return (
        draw(middle, HIDDEN, dtype=dtype),
        draw(middle, dtype=dtype),
        draw(HIDDEN, middle, dtype=dtype),
    )


def _agree(y, z, terms, activation):
    down, bias, up = terms
    arguments = {
        "down_md": down,
        "down_bias_m": bias,
        "activation": activation,
        "up_dm": up,
        "weight": 0.5,
    }
    assert_agree(
        lambda: bottleneck(y, z, **arguments),
        lambda: reference.bottleneck(y, z, **arguments),
        [z, *terms] if y is z else [y, z, *terms],
    )


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_gives_values_and_gradients_of_every_activation(dtype, activation):
    torch.manual_seed(0)
    y, z = draw(ROWS, HIDDEN, dtype=dtype), spread(ROWS, HIDDEN, dtype=dtype)
    _agree(y, z, _terms(20, dtype), activation)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_what_is_no_number_stays_none(activation):
    down, bias, up = (one.detach() for one in _terms(20, torch.float32))
    y = draw(ROWS, HIDDEN, dtype=torch.float32, trains=False)
    bias[3] = torch.nan
    terms = {"down_md": down, "down_bias_m": bias, "up_dm": up, "activation": activation}
    assert bottleneck(y, y, weight=0.5, **terms).isnan().all()


@pytest.mark.parametrize("middle", [1, 128, 130])
def test_narrow_and_wide_bottlenecks_agree(middle):
    torch.manual_seed(0)
    y, z = (draw(ROWS, HIDDEN, dtype=torch.float32) for _ in range(2))
    _agree(y, z, _terms(middle, torch.float32), "silu")


def test_an_output_may_be_read_and_added_to():
    torch.manual_seed(0)
    y = draw(ROWS, HIDDEN, dtype=torch.float32)
    _agree(y, y, _terms(20, torch.float32), "gelu")


@pytest.mark.parametrize("size", [1e-5, 1e-2, 0.124, 0.126, 8.0])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_numbers_of_every_size_keep_their_digits(activation, size):
    width = 16
    eye = torch.eye(width, device=DEVICE)
    x = torch.linspace(-size, size, width, device=DEVICE).diag().requires_grad_()
    y, bias = torch.zeros_like(eye), torch.zeros(width, device=DEVICE)
    terms = {"down_md": eye, "down_bias_m": bias, "up_dm": eye, "activation": activation}
    ours = bottleneck(y, x, weight=1.0, **terms)
    (slope,) = torch.autograd.grad(ours.sum(), x)

    exact_x = x.detach().double().requires_grad_()
    exact = reference.ACTIVATIONS[activation](exact_x)
    (exact_slope,) = torch.autograd.grad(exact.sum(), exact_x)
    least = 0.0 if activation == "tanh" else 1e-7 * size
    for own, other in ((ours, exact), (slope, exact_slope)):
        assert torch.allclose(own.diag().double(), other.diag(), rtol=5e-6, atol=least)
