"""The op table: callers take `ops(device)`, which decides once per device which forms run."""

from functools import cache

import torch

from models.nn.kernels import reference
from models.nn.kernels.table import OpTable, Shift, Update, Weight

__all__ = ["OpTable", "Shift", "Update", "Weight", "ops"]

REFERENCE = OpTable(
    project=reference.project,
    scale_shift=reference.scale_shift,
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    rotate=reference.rotate,
    swiglu=reference.swiglu,
    attend_packed=reference.attend_packed,
    linear_cross_entropy=reference.linear_cross_entropy,
    low_rank=reference.low_rank,
    bottleneck=reference.bottleneck,
    gated_attention=reference.gated_attention,
    row_scale=reference.row_scale,
    row_shift=reference.row_shift,
)


def ops(device: torch.device) -> OpTable:
    """Return the forms that run on a device."""
    return _choose(device.type)


@cache
def _choose(device_type: str) -> OpTable:  # noqa: ARG001 - one form so far
    return REFERENCE
