"""Tensors of a safetensors file in memory, as views: nothing is copied, nothing is trusted.

The format is documented at https://huggingface.co/docs/safetensors: eight bytes with the length of
a JSON header, the header, and then the tensors without holes.
"""

import json
from collections.abc import Iterable, Sequence
from math import prod
from mmap import mmap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.pace import give_way

Content = bytearray | mmap
"""A file in memory, or mapped so that its pages may be written."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000
_LENGTH_BYTES = 8
_PIECE = 1024 * 1024
"""Numbers that are gone through without giving way."""


def read_tensors(content: Content) -> dict[str, Tensor]:
    """Return the tensors of a whole file, which they share memory with.

    ValueError, which says why, for anything that is not exactly such a file.
    """
    header, first = _read_header(content)
    places, reached = [], first
    for name, entry in sorted(header.items(), key=_order):
        place = _place(entry, start=reached, first=first, name=name)
        reached += place.length * place.dtype.itemsize
        if reached > len(content):
            raise ValueError(f"tensor {name!r} is cut short")
        places.append(place)
    if reached != len(content):
        raise ValueError(f"it has {len(content)} bytes, its tensors end at {reached}")
    return _views(content, places, first=first)


def as_one(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return a flat view of tensors that fill one stretch of memory between them, else None."""
    if not tensors:
        return None
    first = tensors[0]
    storage = first.untyped_storage().data_ptr()
    spans = []
    for tensor in tensors:
        alike = tensor.dtype == first.dtype and tensor.is_contiguous()
        if not alike or tensor.untyped_storage().data_ptr() != storage:
            return None
        spans.append((tensor.storage_offset(), tensor.numel()))
    spans.sort()
    reached = start = spans[0][0]
    for offset, count in spans:
        if offset != reached:
            return None
        reached += count
    return first.as_strided((reached - start,), (1,), start)


def cast_adjacent(tensors: Sequence[Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
    """Return casts of tensors by the `id` of each, made at once; none unless they are `as_one`."""
    flat = as_one(tensors)
    if flat is None or flat.dtype == dtype:
        return {}
    cast = torch.empty_like(flat, dtype=dtype)
    for source, target in zip(torch.split(flat, _PIECE), torch.split(cast, _PIECE), strict=True):
        target.copy_(source)
        give_way()
    ordered = sorted(tensors, key=Tensor.storage_offset)
    pieces = torch.split(cast, [tensor.numel() for tensor in ordered])
    return {
        id(tensor): piece.view(tensor.shape) for tensor, piece in zip(ordered, pieces, strict=True)
    }


@torch.no_grad()
def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest magnitude in tensors of any floating type; NaN if there is one, 0 if none.

    Two numbers are taken of each tensor in one pass, and compared at the end.
    """
    held = [tensor for tensor in tensors if tensor.numel()]
    flat = as_one(held)
    ends: dict[torch.dtype, list[Tensor]] = {}
    for tensor in held if flat is None else torch.split(flat, _PIECE):
        ends.setdefault(tensor.dtype, []).extend(torch.aminmax(tensor))
        give_way()
    stacked = [torch.stack(same).double() for same in ends.values()]
    return float(torch.cat(stacked).abs().amax()) if stacked else 0.0


def _read_header(content: Content) -> tuple[dict[str, Any], int]:
    """Return the entries by name, and where the tensors begin."""
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    first = _LENGTH_BYTES + length
    if len(content) < _LENGTH_BYTES or length > LONGEST_HEADER or first > len(content):
        raise ValueError("its header is cut short")
    try:
        header = json.loads(content[_LENGTH_BYTES:first], object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    return header, first


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _order(item: tuple[str, Any]) -> tuple[int, int]:
    """Sort by place; what has none is refused when it is its turn."""
    name, entry = item
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise ValueError(f"tensor {name!r} has no place")
    return offsets[0], offsets[1]


class _Place(NamedTuple):
    """A tensor that begins at byte `start` of the file."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    length: int
    start: int


def _place(entry: dict[str, Any], *, start: int, first: int, name: str) -> _Place:
    """Return where a tensor lies, which must begin at `start`."""
    named, shape = entry.get("dtype"), entry.get("shape")
    dtype = DTYPES.get(named) if isinstance(named, str) else None
    if dtype is None:
        raise ValueError(f"tensor {name!r} is of the unknown type {named!r}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"tensor {name!r} has no dimensions")
    count = prod(shape)
    if [start - first, start - first + count * dtype.itemsize] != entry["data_offsets"]:
        raise ValueError(f"tensor {name!r} does not lie where the one before it ends")
    return _Place(name, dtype, shape, count, start)


def _views(content: Content, places: list[_Place], *, first: int) -> dict[str, Tensor]:
    """Return all tensors; those of a file of one type are pieces of one view."""
    dtypes = {place.dtype for place in places}
    if len(dtypes) != 1 or first % (size := dtypes.pop().itemsize) or first == len(content):
        return {place.name: _view(content, place) for place in places}
    count = (len(content) - first) // size
    flat = torch.frombuffer(content, dtype=places[0].dtype, count=count, offset=first)
    pieces = torch.split(flat, [place.length for place in places])
    return {
        place.name: piece.view(place.shape) if place.length else _view(content, place)
        for place, piece in zip(places, pieces, strict=True)
    }


def _view(content: Content, place: _Place) -> Tensor:
    name, dtype, shape, count, start = place
    if not count:
        return _empty(shape, dtype=dtype, name=name)
    if start % dtype.itemsize:
        aligned = bytearray(content[start : start + count * dtype.itemsize])
        return torch.frombuffer(aligned, dtype=dtype).view(shape)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start).view(shape)


def _empty(shape: list[int], *, dtype: torch.dtype, name: str) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"tensor {name!r} has impossible dimensions") from error
