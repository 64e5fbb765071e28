"""`python -m models.nn.kernels.native`: build the C++ kernels, or say why that cannot be."""

from models.nn.kernels.native.build import CannotBuild, build

try:
    print(f"C++ kernels: {build().name}")  # noqa: T201 - a command
except CannotBuild as reason:
    print(f"C++ kernels were not built; torch does their work, slower: {reason}")  # noqa: T201
