"""Compiles the optional C++ kernels for this machine: `python -m models.nn.kernels.native`.

It needs a C++20 compiler and takes seconds; without one everything runs in plain torch. Each
instruction set has translation units of its own, and what a processor can do is asked when the
library is loaded, so the result also loads on lesser machines of the same kind.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "source"
COMMON = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-Wall", "-Wextra")
SANITIZED = (
    *("-O1", "-g1", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
)
"""Added by `GRAFTWORK_NATIVE=sanitized`: a read or write out of bounds ends the process."""
AVX512 = (
    *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni", "bf16")),
    "-mfma",
    "-mprfchw",
)
AVX2 = ("-mavx2", "-mfma", "-mprfchw", "-Dgw=gw_avx2")
"""What is compiled for several instruction sets needs names of its own for each."""
FLAGS = {
    "_avx2.cpp": AVX2,
    "_avx512.cpp": AVX512,
    "_amx.cpp": (*AVX512, "-mamx-tile", "-mamx-bf16"),
    "_emulated.cpp": (*AVX512, "-O1"),
}
"""By the end of a source's name, from the least demanding on."""
COMPILERS = ("g++", "c++", "clang++")
"""GCC first: its OpenMP is the one that torch brings, and two would fight for the cores."""


class CannotBuild(Exception):
    """There is no compiler that takes the sources, or no processor that runs them."""


def library_path() -> Path:
    """Return where the library of these sources lies once built."""
    content = hashlib.sha256(repr((_common(), FLAGS)).encode())
    for path in sorted(SOURCE.iterdir()):
        content.update(path.name.encode() + path.read_bytes())
    folder = FOLDER / "build" / ("sanitized" if _is_sanitized() else "")
    return folder / f"libgraftwork-{content.hexdigest()[:16]}.so"


def build() -> Path:
    """Compile and link what is not built yet; `CannotBuild` says why that is impossible."""
    target = library_path()
    if target.exists():
        return target
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        raise CannotBuild("the C++ kernels are for Linux on x86-64")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise CannotBuild("no C++ compiler was found")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects = _compile_all(compiler, Path(scratch))
        linked = Path(scratch) / target.name
        _run([compiler, "-shared", *_common(), *map(str, objects), "-o", str(linked)])
        for old in target.parent.glob("libgraftwork-*.so"):
            old.unlink()
        linked.replace(target)
    return target


def _is_sanitized() -> bool:
    return os.environ.get("GRAFTWORK_NATIVE", "").lower() == "sanitized"


def _common() -> tuple[str, ...]:
    return (*COMMON, *SANITIZED) if _is_sanitized() else COMMON


def _compile_all(compiler: str, scratch: Path) -> list[Path]:
    def compile_one(source: Path) -> Path:
        flags = next((FLAGS[end] for end in FLAGS if source.name.endswith(end)), ())
        target = scratch / f"{source.stem}.o"
        _run([compiler, *_common(), *flags, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sorted(SOURCE.glob("*.cpp"), key=_demand)))


def _demand(source: Path) -> tuple[int, str]:
    """Sort by what a source demands: of an inline function in several, the first one is linked."""
    ends = list(FLAGS)
    level = next((ends.index(end) + 1 for end in ends if source.name.endswith(end)), 0)
    return level, source.name


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBuild(f"{command[0]} cannot be started: {error}") from error
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
