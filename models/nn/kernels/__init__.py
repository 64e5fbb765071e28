"""The op table: callers take `ops(device)`, which decides once per device which forms run."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from models.nn.kernels.native import forms as native_forms
from models.nn.kernels.native import library
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.table import Heads, Layer, OpTable, Shift, Update, Weight

__all__ = ["Heads", "Layer", "OpTable", "Shift", "Update", "Weight", "ops"]


def ops(device: torch.device) -> OpTable:
    """Return the forms that run on a device."""
    return _choose(device.type)


@cache
def _choose(device_type: str) -> OpTable:
    native = library() if device_type == "cpu" else None
    if native is not None:
        return native_forms.improve(PLAIN)
    if device_type != "cuda" or find_spec("triton") is None:
        return PLAIN
    # Not at the top: a CPU has no use for what this loads.
    forms: OpTable = import_module("models.nn.kernels.triton.forms").improve(PLAIN)
    return forms
