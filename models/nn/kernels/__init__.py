"""The op table: callers take `ops(device)`, which decides once per device which forms run."""

from functools import cache

import torch

from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import OpTable, Shift, Update, Weight

__all__ = ["OpTable", "Shift", "Update", "Weight", "ops"]


def ops(device: torch.device) -> OpTable:
    """Return the forms that run on a device."""
    return _choose(device.type)


@cache
def _choose(device_type: str) -> OpTable:  # noqa: ARG001 - one form so far
    return PLAIN
