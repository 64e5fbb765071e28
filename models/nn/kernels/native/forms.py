"""The forms in C++ for what a CPU has; only `models.nn.kernels` asks for this."""

from dataclasses import replace

from models.nn.kernels.native.attention import attend_packed
from models.nn.kernels.native.cross_entropy import linear_cross_entropy
from models.nn.kernels.native.layers import compute_layers
from models.nn.kernels.native.pointwise import (
    add_rms_norm,
    rms_norm,
    rotate,
    scale_shift,
    swiglu,
)
from models.nn.kernels.native.project import project
from models.nn.kernels.table import OpTable


def improve(plain: OpTable) -> OpTable:
    """Return the plain forms with those in place that are written in C++."""
    return replace(
        plain,
        project=project,
        scale_shift=scale_shift,
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        rotate=rotate,
        swiglu=swiglu,
        attend_packed=attend_packed,
        linear_cross_entropy=linear_cross_entropy,
        layers=compute_layers,
    )
