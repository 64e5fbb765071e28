import os
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.kernels import triton as kernels

HELPERS = {"activate", "slope", "dot", "load_tile", "store_tile", "_offsets", "weigh"}
"""Parts of kernels, which are compiled within them."""

LEAST_SHARED_BYTES = 99 * 1024
"""Shared memory of a program, where a GPU with tensor cores for bfloat16 has least of it."""


def _kernels():
    """Every kernel of the package by `module:name`; the interpreter keeps the function."""
    for found in iter_modules(kernels.__path__, f"{kernels.__name__}."):
        for name, value in vars(import_module(found.name)).items():
            function = getattr(value, "fn", None)
            own = getattr(function, "__module__", None) == found.name
            if own and name not in HELPERS:
                yield f"{found.name}:{name}"


def test_every_kernel_compiles_for_a_gpu(tmp_path):
    program = "tests.models.nn.kernels.triton.compile_all"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", program, "90"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _, _ in made} == set(_kernels())
    assert all(int(size) > 0 for _, size, _ in made)
    assert max(int(shared) for _, _, shared in made) <= LEAST_SHARED_BYTES
