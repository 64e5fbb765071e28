"""Dimensions that do not fit are an error, as in torch, and no read beside the tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import find, library, reason
from models.nn.kernels.native.attention import attend_packed
from models.nn.kernels.native.cross_entropy import linear_cross_entropy
from models.nn.kernels.native.pointwise import add_rms_norm, rms_norm, rotate
from models.nn.kernels.native.project import project
from models.nn.kernels.rows import linear
from models.nn.kernels.table import Weight

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


def ones(*sizes: int) -> Tensor:
    return torch.ones(sizes, dtype=torch.bfloat16 if find().trains else torch.float32)


def lose(targets: list[int]) -> object:
    weight, targets_n = Weight(ones(64, 32)), torch.tensor(targets)
    return linear_cross_entropy(ones(4, 32), weight=weight, targets_n=targets_n)


CASES: dict[str, Callable[[], object]] = {
    "linear": lambda: linear(ones(4, 32), ones(32, 64)),
    "project": lambda: project(ones(4, 32), weight=Weight(ones(32, 64))),
    "cross-entropy": lambda: linear_cross_entropy(
        ones(4, 32), weight=Weight(ones(64, 64)), targets_n=torch.arange(4)
    ),
    "a target beyond the vocabulary": lambda: lose([0, 1, 2, 64]),
    "a target below it": lambda: lose([0, 1, 2, -100]),
    "too few targets": lambda: lose([0, 1]),
    "heads that share unequally": lambda: attend_packed(
        ones(4, 9, 32), kv_heads=2, bounds=[0, 4], scale=1.0
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


def test_sequences_beyond_the_rows_are_an_error() -> None:
    with pytest.raises(IndexError):
        attend_packed(ones(4, 3, 32), kv_heads=1, bounds=[0, 5], scale=1.0)
