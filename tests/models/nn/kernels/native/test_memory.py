"""Kernels that get no memory say so, as an error that a job or an engine can end by."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from models.nn.kernels import native
from models.nn.kernels.native import library, reason
from models.nn.kernels.native.attention import attend_packed
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.cross_entropy import linear_cross_entropy
from models.nn.kernels.native.step import Form, Until
from models.nn.kernels.table import Weight
from tests.models.nn.kernels.native.comparing import drawn
from tests.models.nn.kernels.native.stepping import (
    POSITIONS,
    SHAPES,
    SLOTS,
    VECTORS,
    World,
    drawn_ids,
    loaded,
    make_backbone,
)

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


@pytest.mark.skipif(
    os.environ.get("GRAFTWORK_NATIVE") == "sanitized", reason="its shadow needs all addresses"
)
@pytest.mark.parametrize("form", VECTORS)
def test_what_lacks_memory_is_an_error(form: Form) -> None:
    """In a process of its own: this one has memory that others left."""
    command = [sys.executable, "-m", __name__, form]
    returns = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed, or it would serve again
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **returns},
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("form", VECTORS)
def test_steps_end_with_one_that_lacks_memory(form: Form) -> None:
    world = World.of(make_backbone(), form=form)
    hidden = world.step([Run(0, 0, [5])], likeliest=[0])
    loaded().handle.gw_lack_memory()  # as a call that lacked it does
    with pytest.raises(MemoryError):
        hidden.go_on([6], [1], until=Until(most=3))
    assert len(hidden.go_on([6], [1], until=Until(most=3))) == 3


def lose(hidden: int) -> Callable[[], object]:
    x, weight = drawn(2, hidden).requires_grad_(), Weight(drawn(32, hidden))
    targets_n = torch.zeros(2, dtype=torch.int64)
    return lambda: linear_cross_entropy(x, weight=weight, targets_n=targets_n)


def attend(rows: int) -> Callable[[], object]:
    """Each thread gets what it needs; none of them may leave the others."""
    heads = torch.zeros(rows, 3, 32, dtype=drawn(0).dtype)
    return lambda: attend_packed(heads, kv_heads=1, bounds=[0, rows], scale=1.0)


def step(world: World, count: int) -> Callable[[], object]:
    runs = [Run(slot, 0, drawn_ids(count)) for slot in range(SLOTS)]
    return lambda: world.step(runs)


def run_out_of_memory(form: Form) -> None:
    """Compute little, then much in 32 megabytes more, which outputs fit into, then little again."""
    if form == "avx2":
        native._LEVELS = dict.fromkeys(native._LEVELS, ("avx2",))
        torch.set_float32_matmul_precision("high")
    SHAPES["wide"] = ("LlamaConfig", {"intermediate_size": 32768, "num_hidden_layers": 1})
    world = World.of(make_backbone("wide"), form=form)
    little = [lose(32), attend(64), step(world, 1)]
    much = [lose(16384), attend(200_000), step(world, POSITIONS)]
    for act in little:
        act()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as sizes:
        held = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 32 * 1024 * 1024, limits[1]))
    for act in much:
        with pytest.raises(MemoryError):
            act()
    resource.setrlimit(resource.RLIMIT_AS, limits)
    for act in little:
        act()


if __name__ == "__main__":
    run_out_of_memory(sys.argv[1])  # type: ignore[arg-type]  # it is one
