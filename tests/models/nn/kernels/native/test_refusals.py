"""Dimensions that do not fit are an error, as in torch, and no read beside the tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import find, library, reason
from models.nn.kernels.native.cross_entropy import linear_cross_entropy
from models.nn.kernels.native.pointwise import add_rms_norm, rms_norm, rotate
from models.nn.kernels.native.project import project
from models.nn.kernels.rows import linear
from models.nn.kernels.table import Weight

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


def ones(*sizes: int) -> Tensor:
    return torch.ones(sizes, dtype=torch.bfloat16 if find().trains else torch.float32)


CASES: dict[str, Callable[[], object]] = {
    "linear": lambda: linear(ones(4, 32), ones(32, 64)),
    "project": lambda: project(ones(4, 32), weight=Weight(ones(32, 64))),
    "cross-entropy": lambda: linear_cross_entropy(
        ones(4, 32), weight=Weight(ones(64, 64)), targets_n=torch.arange(4)
    ),
    "norm": lambda: rms_norm(ones(4, 64), gain=ones(32), epsilon=1e-5),
    "sum and norm": lambda: add_rms_norm(ones(4, 64), ones(4, 64), gain=ones(32), epsilon=1e-5),
    "gains of other rows": lambda: rms_norm(ones(4, 64), gain=ones(3, 64), epsilon=1e-5),
    "a narrow sum": lambda: add_rms_norm(ones(4, 64), ones(4, 32), gain=ones(64), epsilon=1e-5),
    "rotary angles": lambda: rotate(
        ones(4, 3, 32), cos_th=ones(3, 32), sin_th=ones(3, 32), rotated=2
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_raises(case: str) -> None:
    with pytest.raises(RuntimeError):
        CASES[case]()


def test_a_product_without_inputs_is_zeros() -> None:
    assert not linear(ones(4, 0), ones(32, 0)).any()
