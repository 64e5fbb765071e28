"""The benchmark of kernels: it covers every op, and the form that runs here means the same."""

from dataclasses import MISSING, fields

import pytest
import torch

from benchmarks.kernels.__main__ import apart, compare
from benchmarks.kernels.cases import make_cases
from models.nn.kernels import OpTable, ops

CASES = make_cases(24, dtype=torch.float32)


def test_every_op_has_a_case() -> None:
    ops = [field.name for field in fields(OpTable) if field.default is MISSING]
    assert [case.op for case in CASES] == ops


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_a_case_compares_outputs_and_gradients(case) -> None:
    said = compare(case, ops(torch.device("cpu")), repeats=1)
    assert said["ratio"] > 0
    assert said["apart"] < 1e-5
    assert said["plain_apart"] < 1e-5


def test_apart_is_relative() -> None:
    assert apart(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(
        0.5 / 5.408, rel=1e-3
    )
