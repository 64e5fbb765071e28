"""Memory for packed weights: what a product reads behind a panel is zeros."""

import ctypes

import pytest
import torch

from models.nn.kernels.native import INPUT_STEP, PANEL_WIDTH, library, reason
from models.nn.kernels.native.arena import Arena
from tests.models.nn.kernels.native.stepping import loaded

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


@pytest.mark.parametrize("rank", [2, 16, 30, 32, 40])
def test_zeros_follow_what_is_packed_up_to_what_is_read(rank: int) -> None:
    arena = Arena(loaded(), chunk=1 << 16)
    arena.put(torch.zeros(1))
    arena._free.fill_(255)  # bfloat16 of no number
    weight_nr = torch.randn(2 * PANEL_WIDTH, rank).bfloat16()
    reads = rank + -rank % INPUT_STEP
    address = arena.pack(weight_nr, readable=reads)
    packed, behind = weight_nr.numel(), (reads - rank) * PANEL_WIDTH
    raw = ctypes.string_at(address, 2 * (packed + behind))
    found = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16)
    assert torch.equal(found[:packed].sort().values, weight_nr.flatten().sort().values)
    assert not found[packed:].any()
