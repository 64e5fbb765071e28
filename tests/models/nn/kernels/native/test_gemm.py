"""The C++ product against float64, its rows against themselves in other company, AMX emulated."""

import ctypes
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from models.nn.kernels.native import Library, library, reason
from tests.models.nn.kernels.native.comparing import needs_avx512

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

SIZES = [(16, 32), (48, 64), (80, 576), (576, 1536)]
ROWS = [1, 2, 5, 6, 7, 13, 32, 97]


def loaded() -> Library:
    found = library()
    assert found is not None
    return found


class Packed(NamedTuple):
    """A weight (N, K) as the product reads it."""

    panels: Tensor
    outputs: int
    inputs: int


def pack(weight_nk: Tensor) -> Packed:
    panels = torch.empty(weight_nk.numel(), dtype=torch.bfloat16)
    loaded().pack_at(panels.data_ptr(), weight_nk)
    outputs, inputs = weight_nk.shape
    return Packed(panels, outputs, inputs)


def gemm(x_mk: Tensor, packed: Packed, *, kind: str = "bf16", form: str | None = None) -> Tensor:
    y_mn = torch.empty(
        len(x_mk), packed.outputs, dtype=torch.float32 if kind == "f32" else torch.bfloat16
    )
    getattr(loaded().handle, f"gw_gemm_{kind}_{form or loaded().instructions}")(
        ctypes.c_void_p(x_mk.data_ptr()),
        ctypes.c_int64(x_mk.stride(0)),
        ctypes.c_int64(len(x_mk)),
        ctypes.c_void_p(packed.panels.data_ptr()),
        ctypes.c_int64(packed.inputs),
        ctypes.c_int64(packed.outputs),
        ctypes.c_void_p(y_mn.data_ptr()),
        ctypes.c_int64(y_mn.stride(0)),
    )
    return y_mn


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("rows", ROWS)
def test_product_is_that_of_float64(outputs: int, inputs: int, rows: int) -> None:
    x, weight = drawn(rows, inputs, seed=1), drawn(outputs, inputs, seed=2)
    exact = x.double() @ weight.double().T
    found = gemm(x, pack(weight), kind="f32")
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_bfloat16_result_is_the_float32_one_rounded_once() -> None:
    x, packed = drawn(9, 96, seed=1), pack(drawn(64, 96, seed=2))
    assert torch.equal(gemm(x, packed), gemm(x, packed, kind="f32").bfloat16())


@pytest.mark.parametrize("inputs", [64, 1536])
def test_row_does_not_depend_on_its_company(inputs: int) -> None:
    packed = pack(drawn(208, inputs, seed=2))
    rows = drawn(70, inputs, seed=3)
    alone = torch.cat([gemm(row[None], packed, kind="f32") for row in rows])
    for company in (rows, rows.flip(0), rows[13:29]):
        found = gemm(company, packed, kind="f32")
        expected = {tuple(row.tolist()): own for row, own in zip(rows, alone, strict=True)}
        wanted = torch.stack([expected[tuple(row.tolist())] for row in company])
        assert torch.equal(found, wanted)


def test_threads_do_not_change_a_bit() -> None:
    x, packed = drawn(33, 576, seed=1), pack(drawn(176, 576, seed=2))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gemm(x, packed))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_rows_may_be_a_slice_of_wider_ones() -> None:
    wide, packed = drawn(11, 128, seed=5), pack(drawn(32, 64, seed=6))
    assert torch.equal(gemm(wide[:, 64:], packed), gemm(wide[:, 64:].contiguous(), packed))


@pytest.mark.parametrize(("outputs", "inputs"), [(17, 64), (16, 33)])
def test_odd_sizes_are_refused(outputs: int, inputs: int) -> None:
    with pytest.raises(ValueError, match="cannot be packed"):
        loaded().pack_at(0, drawn(outputs, inputs))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        loaded().pack_at(0, torch.zeros(16, 32))


@needs_avx512
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [16, 48])
def test_tiles_compute_the_same_product(rows: int, outputs: int) -> None:
    """The tiles' instructions are emulated here: what is tested is how they are used."""
    x, weight = drawn(rows, 160, seed=1), drawn(outputs, 160, seed=2)
    found = gemm(x, pack(weight), kind="f32", form="emulated")
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[-1:], gemm(x[-1:], pack(weight), kind="f32", form="emulated"))
