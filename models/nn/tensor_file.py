"""Tensors of a safetensors file in memory, as views: nothing is copied, nothing is trusted.

The format is documented at https://huggingface.co/docs/safetensors: eight bytes with the length of
a JSON header, the header, and then the tensors without holes.
"""

import json
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor

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


def read_tensors(content: bytearray) -> dict[str, Tensor]:
    """Return the tensors of a whole file, which they share memory with.

    ValueError, which says why, for anything that is not exactly such a file.
    """
    header, first = _read_header(content)
    tensors, reached = {}, first
    for name, entry in sorted(header.items(), key=_order):
        tensor, stop = _view(content, entry, first=first, start=reached, name=name)
        tensors[name], reached = tensor, stop
    if reached != len(content):
        raise ValueError(f"it has {len(content)} bytes, its tensors end at {reached}")
    return tensors


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest magnitude in tensors of any floating type; NaN if there is one, 0 if none.

    Two numbers are taken of each tensor in one pass, and compared at the end.
    """
    ends: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            ends.setdefault(tensor.dtype, []).extend(torch.aminmax(tensor))
    stacked = [torch.stack(same).double() for same in ends.values()]
    return float(torch.cat(stacked).abs().amax()) if stacked else 0.0


def _read_header(content: bytearray) -> tuple[dict[str, Any], int]:
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
    try:
        start, stop = entry["data_offsets"]
        return int(start), int(stop)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r} has no place") from error


def _view(
    content: bytearray, entry: dict[str, Any], *, first: int, start: int, name: str
) -> tuple[Tensor, int]:
    """Return a tensor that must begin at byte `start`, and where it ends."""
    named, shape = entry.get("dtype"), entry.get("shape")
    dtype = DTYPES.get(named) if isinstance(named, str) else None
    if dtype is None:
        raise ValueError(f"tensor {name!r} is of the unknown type {named!r}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"tensor {name!r} has no dimensions")
    count = prod(shape)
    stop = start + count * dtype.itemsize
    if [start - first, stop - first] != entry["data_offsets"] or stop > len(content):
        raise ValueError(f"tensor {name!r} does not lie where the one before it ends")
    if not count:
        return _empty(shape, dtype=dtype, name=name), stop
    if start % dtype.itemsize:
        aligned = bytearray(content[start:stop])
        return torch.frombuffer(aligned, dtype=dtype).view(shape), stop
    flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start)
    return flat.view(shape), stop


def _empty(shape: list[int], *, dtype: torch.dtype, name: str) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"tensor {name!r} has impossible dimensions") from error
