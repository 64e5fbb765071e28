"""Memory for what every step reads as a whole: few large pieces on large pages.

Shapes: N outputs, K inputs.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from core.pace import give_way
from models.nn.kernels.native import PANEL_WIDTH, Library

LARGE_PAGE = 2 * 1024 * 1024
_LINE = 64
_WORTH_CODING = 7 / 8
"""At most so much of what a weight takes in bfloat16."""


class Arena:
    """Hands out pieces of memory that live as long as it does."""

    def __init__(self, library: Library, *, chunk: int = LARGE_PAGE) -> None:
        """Get memory in chunks of so many bytes."""
        self._library = library
        self._chunk = chunk
        self._chunks: list[Tensor] = []
        self._free = torch.empty(0, dtype=torch.uint8)
        self.bytes = 0
        """What it holds."""

    def pack(self, weight_nk: Tensor, *, inputs: int | None = None, readable: int = 0) -> int:
        """Keep a weight (N, K) packed as bfloat16 and return its address.

        N is filled up to whole panels and K, which zeros follow, to `inputs`, which must be even.
        Zeros follow the last panel for `readable` inputs of it to be read.
        """
        weight_nk = _fill(weight_nk.bfloat16(), inputs=inputs).contiguous()
        packed = weight_nk.numel()
        behind = max(0, readable - weight_nk.shape[1]) * PANEL_WIDTH
        panels = self._take((packed + behind) * 2).view(torch.bfloat16)
        panels[packed:] = 0
        self._library.pack_into(panels[:packed], weight_nk)
        give_way()
        return panels.data_ptr()

    def pack_int8(self, weight_nk: Tensor) -> int:
        """Keep an int8 weight (N, K) packed and return its address; N must fill panels."""
        weight_nk = weight_nk.contiguous()
        panels = self._take(weight_nk.numel())
        self._library.pack_int8(panels.view(torch.int8), weight_nk)
        return panels.data_ptr()

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
        count = outputs // PANEL_WIDTH
        panels = self._take(count * stride)
        self._library.pack_coded(panels.view(count, stride), weight_nk)
        give_way()
        return panels.data_ptr(), stride

    def put(self, values: Tensor | None) -> int | None:
        """Keep a vector or table as contiguous float32; None stays None."""
        if values is None:
            return None
        held = self._take(values.numel() * 4).view(torch.float32)
        held.copy_(values.reshape(-1))
        return held.data_ptr()

    def reserve(self, elements: int) -> int:
        """Return the address of so many bfloat16 zeros."""
        held = self._take(elements * 2)
        held.zero_()
        return held.data_ptr()

    def _take(self, size: int) -> Tensor:
        whole = -(-size // _LINE) * _LINE
        if len(self._free) < whole:
            self._free = self._grow(max(self._chunk, whole))
        taken, self._free = self._free[:size], self._free[whole:]
        return taken

    def _grow(self, size: int) -> Tensor:
        """Return new memory, on large pages if it fills one."""
        self.bytes += size
        skipped = 0
        chunk = torch.empty(size if size < LARGE_PAGE else size + LARGE_PAGE, dtype=torch.uint8)
        if size >= LARGE_PAGE:
            skipped = -chunk.data_ptr() % LARGE_PAGE
            self._library.handle.gw_use_large_pages(
                ctypes.c_void_p(chunk.data_ptr() + skipped), ctypes.c_int64(size)
            )
        self._chunks.append(chunk)
        return chunk[skipped : skipped + size]


def _fill(weight_nk: Tensor, *, inputs: int | None) -> Tensor:
    outputs, held = weight_nk.shape
    across, along = -outputs % PANEL_WIDTH, (inputs or held) - held
    return F.pad(weight_nk, (0, along, 0, across)) if across or along else weight_nk
