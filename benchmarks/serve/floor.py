"""What a decode step cannot be faster than: what it must read and multiply, at measured speeds."""

import time
from dataclasses import dataclass
from math import prod
from typing import Self

import torch

from benchmarks.rate import measure_rate
from benchmarks.serve.world import World
from models.nn.kernels.native import library

BYTES = 512 * 1024 * 1024
"""Read in one go: far more than any cache holds."""
WIDTH = 2
"""Bytes of a number in bfloat16."""
CODED_WIDTH = 1.5
"""Bytes of a weight of the base where our step reads them coded."""


@dataclass(frozen=True)
class Speeds:
    """What this machine does a second with all threads."""

    bandwidth: float
    """Bytes that a plain sum reads."""
    rate: float
    """Multiplications and additions of one large product by torch; by AVX2 alone ours of integers
    have more, so that many rows may be below this floor there."""

    @classmethod
    def measure(cls) -> Self:
        """Measure both."""
        return cls(measure_bandwidth(), measure_rate())


def measure_bandwidth() -> float:
    """Return the most bytes a second that a plain sum reads with all threads."""
    numbers = torch.ones(BYTES // 8, dtype=torch.int64)
    best = 0.0
    for _ in range(7):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, BYTES / (time.perf_counter() - began))
    return best


def floor_of(
    world: World,
    *,
    speeds: Speeds,
    rows: int,
    length: int,
    adapters: int,
    rank: int,
    weight_bytes: float = WIDTH,
) -> float:
    """Return seconds: the longer of what must be read and what must be multiplied.

    Read are weights and head once, each distinct adapter once, each row's cache once; multiplied is
    each row with the layers' weights and its adapter. The head is not, and is read in 8 bits, for
    it may be screened. `weight_bytes` is what a weight of the base takes.
    """
    shape = world.backbone.shape
    layers = {place: size for place, size in shape.linears.items() if place.startswith("layers.")}
    adapted = sum(rank * sum(size) for size in layers.values())
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * length
    weights = sum(prod(size) for size in layers.values())
    base = weight_bytes * weights + min(weight_bytes, 1) * shape.vocab * shape.hidden
    read = base + WIDTH * (adapters * adapted + rows * cache)
    multiplied = weights + (adapted if adapters else 0)
    return max(read / speeds.bandwidth, 2 * rows * multiplied / speeds.rate)


def weight_bytes() -> float:
    """Return the bytes that a weight of the base takes as our step here reads it."""
    kernels = library()
    return CODED_WIDTH if kernels is not None and kernels.reads_codes else WIDTH
