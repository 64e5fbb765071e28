"""Memory for packed weights: zeros behind a panel, and large pages that are used again."""

import ctypes
import gc

import pytest
import torch

from models.nn.kernels.native import INPUT_STEP, PANEL_WIDTH, library, reason
from models.nn.kernels.native.arena import LARGE_PAGE, Arena
from tests.models.nn.kernels.native.stepping import loaded

pytestmark = pytest.mark.skipif(library() is None, reason=reason())


@pytest.mark.parametrize("rank", [2, 16, 30, 32, 40])
def test_zeros_follow_what_is_packed_up_to_what_is_read(rank: int) -> None:
    arena = Arena(loaded(), chunk=1 << 16)
    arena.put(torch.zeros(1))
    ctypes.memset(arena._next, 255, arena._end - arena._next)  # bfloat16 of no number
    weight_nr = torch.randn(2 * PANEL_WIDTH, rank).bfloat16()
    reads = rank + -rank % INPUT_STEP
    address = arena.pack(weight_nr, readable=reads)
    packed, behind = weight_nr.numel(), (reads - rank) * PANEL_WIDTH
    raw = ctypes.string_at(address, 2 * (packed + behind))
    found = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16)
    assert torch.equal(found[:packed].sort().values, weight_nr.flatten().sort().values)
    assert not found[packed:].any()


def test_a_large_page_that_an_arena_has_left_is_the_next_one_s() -> None:
    gc.collect()  # or what others have left would come in between
    arena = Arena(loaded(), chunk=LARGE_PAGE)
    left = arena.reserve(1)
    other = Arena(loaded(), chunk=LARGE_PAGE)
    assert other.reserve(1) != left  # still held
    del arena
    assert Arena(loaded(), chunk=LARGE_PAGE).reserve(1) == left


def test_what_is_kept_as_zeros_is_zeros_on_pages_that_were_used() -> None:
    arena = Arena(loaded(), chunk=LARGE_PAGE)
    ctypes.memset(arena.reserve(1024), 255, 2048)
    del arena
    address = Arena(loaded(), chunk=LARGE_PAGE).reserve(1024)
    assert not any(ctypes.string_at(address, 2048))
