"""Memory for what every step reads as a whole: few large pieces on large pages.

Shapes: N outputs, K inputs.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from core.pace import give_way
from models.nn.kernels.native import PANEL_WIDTH, Library

LARGE_PAGE = 2 * 1024 * 1024
_LINE = 64
_WORTH_CODING = 7 / 8
"""At most so much of what a weight takes in bfloat16."""
_SPARED = 32
"""Large pages that are kept for the next arena: a new one costs a millisecond to get and clear."""
_spare: deque[Tensor] = deque(maxlen=_SPARED)


class Arena:
    """Hands out pieces of memory that live as long as it does."""

    def __init__(self, library: Library, *, chunk: int = LARGE_PAGE) -> None:
        """Get memory in chunks of so many bytes."""
        self._library = library
        self._chunk = chunk
        self._chunks: list[Tensor] = []
        self._next = self._end = 0
        """Addresses of what is free."""
        self.bytes = 0
        """What it holds."""
        weakref.finalize(self, _leave, self._chunks).atexit = False

    def pack(self, weight_nk: Tensor, *, inputs: int | None = None, readable: int = 0) -> int:
        """Keep a weight (N, K) packed as bfloat16 and return its address.

        N is filled up to whole panels and K, which zeros follow, to `inputs`, which must be even.
        Zeros follow the last panel for `readable` inputs of it to be read.
        """
        weight_nk = _fill(weight_nk.bfloat16(), inputs=inputs).contiguous()
        behind = max(0, readable - weight_nk.shape[1]) * PANEL_WIDTH * weight_nk.itemsize
        address = self._take(weight_nk.nbytes + behind)
        self._library.pack_at(address, weight_nk)
        if behind:
            ctypes.memset(address + weight_nk.nbytes, 0, behind)
        give_way()
        return address

    def pack_int8(self, weight_nk: Tensor) -> int:
        """Keep an int8 weight (N, K) packed and return its address; N must fill panels."""
        weight_nk = weight_nk.contiguous()
        address = self._take(weight_nk.nbytes)
        self._library.pack_int8_at(address, weight_nk)
        return address

    def pack_coded(self, weight_nk: Tensor) -> tuple[int, int] | None:
        """Keep a weight (N, K) in 12 bits a number; return its address and the bytes of a panel.

        N and K must fill panels and tiles. None if any panel has so many exceptions that too little
        is saved: all of them have as much room as the one with most.
        """
        weight_nk = weight_nk.bfloat16().contiguous()
        outputs, inputs = weight_nk.shape
        stride = self._library.coded_bytes(weight_nk)
        if stride > _WORTH_CODING * PANEL_WIDTH * inputs * 2:
            return None
        address = self._take(outputs // PANEL_WIDTH * stride)
        self._library.pack_coded_at(address, weight_nk, stride=stride)
        give_way()
        return address, stride

    def pack_rounded(self, weight_nk: Tensor) -> int:
        """Keep a weight (N, K) in block floating point and return its address.

        N and K must fill panels and tiles.
        """
        weight_nk = weight_nk.float().contiguous()
        address = self._take(self._library.rounded_bytes(weight_nk))
        self._library.pack_rounded_at(address, weight_nk)
        give_way()
        return address

    def put(self, values: Tensor | None) -> int | None:
        """Keep a vector or table as contiguous float32; None stays None."""
        if values is None:
            return None
        return self.keep(values.float())

    def keep(self, values: Tensor) -> int:
        """Keep numbers as they are and return their address."""
        values = values.contiguous()
        address = self._take(values.nbytes)
        ctypes.memmove(address, values.data_ptr(), values.nbytes)
        return address

    def reserve(self, elements: int) -> int:
        """Return the address of so many bfloat16 zeros."""
        size = elements * torch.bfloat16.itemsize
        address = self._take(size)
        ctypes.memset(address, 0, size)
        return address

    def _take(self, size: int) -> int:
        whole = -(-size // _LINE) * _LINE
        if self._end - self._next < whole:
            self._grow(max(self._chunk, whole))
        address = self._next
        self._next += whole
        return address

    def _grow(self, size: int) -> None:
        """Get memory, on large pages if it fills one."""
        chunk = _used() if size == LARGE_PAGE else None
        if chunk is None:
            chunk = torch.empty(size if size < LARGE_PAGE else size + LARGE_PAGE, dtype=torch.uint8)
        self.bytes += size
        self._chunks.append(chunk)
        self._next = chunk.data_ptr()
        if size >= LARGE_PAGE:
            self._next += -self._next % LARGE_PAGE
            self._library.call("use_large_pages", self._next, size)
        self._end = self._next + size


def _used() -> Tensor | None:
    """Return a large page that another arena has left, if there is one."""
    try:
        return _spare.pop()
    except IndexError:
        return None


def _leave(chunks: Sequence[Tensor]) -> None:
    """Keep what an arena has left and any other one can use."""
    _spare.extend(chunk for chunk in chunks if len(chunk) == 2 * LARGE_PAGE)


def _fill(weight_nk: Tensor, *, inputs: int | None) -> Tensor:
    outputs, held = weight_nk.shape
    across, along = -outputs % PANEL_WIDTH, (inputs or held) - held
    return F.pad(weight_nk, (0, along, 0, across)) if across or along else weight_nk
