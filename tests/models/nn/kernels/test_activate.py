"""Activations of training: torch's values and slopes, and an element's own bits in any company."""

import pytest
import torch
import torch.nn.functional as F

from models.nn.kernels.plain.activate import activate

FORMS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.fixture(params=FORMS)
def name(request):
    return request.param


def slopes(function, x, up):
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(up)
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_slopes_are_torchs(name, dtype):
    x = torch.cat([torch.linspace(-12, 12, 999), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])])
    up, tolerance = torch.linspace(-1, 1, len(x)), 1e-6 if dtype is torch.float32 else 8e-3
    found = slopes(lambda t: activate(t, name=name), x.to(dtype), up.to(dtype))
    expected = slopes(FORMS[name], x.to(dtype).double(), up.to(dtype).double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is dtype
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("three_threads")
def test_an_element_does_not_know_where_it_lies(name):
    generator = torch.Generator().manual_seed(0)
    own, up = torch.randn(60, 512, generator=generator), torch.randn(60, 512, generator=generator)
    alone = slopes(lambda t: activate(t, name=name), own, up)
    for before in range(7, 120, 11):
        others = torch.ones(before, 512)
        x, above = torch.cat([others, own]), torch.cat([others, up])
        beside = slopes(lambda t: activate(t, name=name), x, above)
        assert all(torch.equal(a[before:], b) for a, b in zip(beside, alone, strict=True))
