"""Every op finds a form for each processor that has kernels, whatever this one is."""

import re
from pathlib import Path

import pytest

from models.nn.kernels import native
from models.nn.kernels.native import library, reason

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

CALLS = re.compile(r'\.call\(\s*"(\w+)"')


ABSENT = {
    "avx2": {
        *("project_forward", "project_backward", "weight_gradient"),
        *("layers_forward", "layers_backward"),
    },
    "avx512": {
        *("multiply", "multiply_rounded", "project_floats_forward", "project_floats_backward"),
        *("swiglu_short_forward", "swiglu_short_again", "swiglu_short_backward", "rotate_short"),
    },
}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_is_called_is_there(level: int) -> None:
    found = library()
    assert found is not None
    sources = Path(native.__file__).parent.glob("*.py")
    names = {name for source in sources for name in CALLS.findall(source.read_text())}
    assert {"norm_forward", "project_backward", "cross_entropy"} <= names
    forms = native._LEVELS[level]
    for name in names - ABSENT[forms[-1]]:
        symbols = [*(f"gw_{name}_{form}" for form in forms), f"gw_{name}"]
        assert any(hasattr(found.handle, symbol) for symbol in symbols), name
