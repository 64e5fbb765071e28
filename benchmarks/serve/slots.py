"""The floor of a swap: an adapter's bytes, read from its file and copied to where they are used."""

import time
from pathlib import Path

import torch
from safetensors import safe_open


def copy_seconds(path: Path) -> float:
    """Return how long it takes to read every tensor of a file into one that exists already.

    Nothing is checked, renamed or converted. The file is read once before, so that its bytes lie
    in the kernel's cache as they do for an adapter that has just been written.
    """
    with safe_open(path, framework="pt") as stored:
        slots = {name: torch.empty_like(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
    for slot in slots.values():
        slot.zero_()  # so that its pages are there
    began = time.perf_counter()
    with safe_open(path, framework="pt") as stored:
        for name, slot in slots.items():
            slot.copy_(stored.get_tensor(name))
    return time.perf_counter() - began
