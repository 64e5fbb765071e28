import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.kernels import reference
from models.nn.kernels.triton.gated_attention import gated_attention
from models.nn.kernels.triton.gated_tiles import KEYS, ROWS, SLICE
from tests.models.nn.kernels.triton.agreement import (
    DEVICE,
    DTYPES,
    assert_agree,
    assert_near,
    draw,
    far_apart,
)


def _tensors(dtype, *, rows, heads=4, kv_heads=2, keys=10, size=24):
    output = draw(heads, rows, size, dtype=dtype, trains=False).transpose(0, 1).requires_grad_()
    query = draw(rows, heads, size, dtype=dtype, trains=False).transpose(0, 1).requires_grad_()
    sides = [draw(kv_heads, keys, size, dtype=dtype) for _ in range(2)]
    return [output, query.mul(4).detach().requires_grad_(), *sides, draw(heads, dtype=dtype)]


def _call(form, tensors, **others):
    output, query, keys, values, gate = tensors
    return form(output, query, keys_kph=keys, values_kph=values, gate=gate, scale=0.7, **others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (ROWS + 5, 10), (7, KEYS + 3)])
def test_a_second_softmax_has_values_and_gradients(dtype, rows, keys):
    torch.manual_seed(0)
    tensors = _tensors(dtype, rows=rows, keys=keys)
    assert_agree(
        lambda: _call(gated_attention, tensors),
        lambda: _call(reference.gated_attention, tensors),
        tensors,
    )


def test_gradients_of_many_rows_are_summed_slice_by_slice():
    torch.manual_seed(0)
    tensors = _tensors(torch.float32, rows=SLICE + 2, heads=2, kv_heads=1, keys=3, size=8)
    assert_agree(
        lambda: _call(gated_attention, tensors),
        lambda: _call(reference.gated_attention, tensors),
        tensors,
    )


def test_a_head_may_begin_2_to_the_31_numbers_behind_the_first():
    torch.manual_seed(0)
    output, query, *rest = _tensors(torch.bfloat16, rows=9, heads=3, kv_heads=1)
    found = []
    for own in (query.detach().requires_grad_(), far_apart(query)):
        tensors = [output, own, *rest]
        values = _call(gated_attention, tensors)
        found.append((values, *torch.autograd.grad(values.float().sum(), tensors)))
    assert all(map(torch.equal, *found))


def test_every_row_may_have_its_own_gates():
    torch.manual_seed(0)
    *tensors, _ = _tensors(torch.float32, rows=9)
    tensors.append(draw(9, 4, dtype=torch.float32))
    assert_agree(
        lambda: _call(gated_attention, tensors),
        lambda: _call(reference.gated_attention, tensors),
        tensors,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_sees_the_keys_of_its_slot(dtype):
    torch.manual_seed(0)
    rows, keys = ROWS + 5, KEYS + 8
    tensors = _tensors(dtype, rows=rows, keys=keys)
    slots = torch.arange(rows, device=DEVICE) % 3
    owners = torch.tensor([0] + [1] * KEYS + [2] * 7, device=DEVICE)
    visible = slots[:, None] == owners
    with torch.no_grad():
        ours, plain = (
            _call(form, tensors, visible_tp=visible)
            for form in (gated_attention, reference.gated_attention)
        )
    assert_near(ours, plain)
