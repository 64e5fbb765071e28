"""Ops of training are tested as this processor has them, and as one with AVX2 alone has them."""

from collections.abc import Iterator

import pytest
import torch

from models.nn.kernels import native
from models.nn.kernels.native import library, load, reason


@pytest.fixture(params=["bfloat16", "float32"])
def each_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the kernels of training in one dtype; where it is float32, products may round."""
    found = library()
    if found is None:
        pytest.skip(reason())
    if request.param == "float32":
        yield from _by_avx2_alone()
    elif found.trains:
        yield
    else:
        pytest.skip("there are no kernels with AVX512-BF16 here")


@pytest.fixture
def avx2() -> Iterator[None]:
    """Have the kernels that a processor with AVX2 alone has; products may round."""
    if library() is None:
        pytest.skip(reason())
    yield from _by_avx2_alone()


def _by_avx2_alone() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_LEVELS", dict.fromkeys(native._LEVELS, ("avx2",)))
        load.cache_clear()
        torch.set_float32_matmul_precision("high")
        yield
    torch.set_float32_matmul_precision(precision)
    load.cache_clear()
