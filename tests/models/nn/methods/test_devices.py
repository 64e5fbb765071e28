"""Where tensors lie: torch's meta device stands for a GPU, and meets the CPU as one would."""

import copy
from contextlib import suppress

import pytest
import torch

from core.errors import InvalidRequest
from models.nn.base import Base
from models.nn.methods import METHODS
from models.nn.terms import Terms
from tests.models.nn.families import make_backbone

CASES = [
    pytest.param(cls(**example), id=f"{kind}-{index}")
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
]


@pytest.fixture(scope="module", params=["llama-biased-tied", "qwen3", "phi3", "gemma2"])
def base(request):
    """A base whose weights are not on the CPU."""
    backbone = make_backbone(request.param)
    network = copy.deepcopy(backbone.network).to("meta")
    return Base(backbone.shape, torch.bfloat16, torch.device("meta"), network)


def _terms(method, sizes, base, *, device):
    tensors = {name: torch.ones(size, device=device) for name, size in sizes.items()}
    with suppress(NotImplementedError):  # what looks at numbers finds none there
        return Terms.of(method, tensors, base)
    return Terms()


@pytest.mark.parametrize("method", CASES)
def test_terms_lie_where_the_base_does(method, base):
    """A trainer's tensors lie there too; the engine has read its own into memory."""
    try:
        trained, served = method.tensors(base.shape), method.served(base.shape)
    except InvalidRequest:
        assert base.shape.parts  # fused places have other names
        return
    for sizes, device in ((trained, "meta"), (trained, "cpu"), (served, "cpu")):
        terms = _terms(method, sizes, base, device=device)
        assert all(tensor.is_meta for tensor in terms.tensors())
