"""The forms for a GPU: own Triton kernels, and liger-kernel's where its layout fits ours.

Only `models.nn.kernels` asks for this, once a base lies on a GPU: Triton takes a while to load.
"""

from dataclasses import replace

from models.nn.kernels.table import OpTable
from models.nn.kernels.triton.bottleneck import bottleneck
from models.nn.kernels.triton.gated_attention import gated_attention
from models.nn.kernels.triton.linear_cross_entropy import is_available, linear_cross_entropy
from models.nn.kernels.triton.low_rank import low_rank
from models.nn.kernels.triton.project import project
from models.nn.kernels.triton.rms_norm import add_rms_norm, rms_norm
from models.nn.kernels.triton.rotate import rotate
from models.nn.kernels.triton.swiglu import swiglu


def improve(plain: OpTable) -> OpTable:
    """Return the plain forms with those in place that are made for a GPU."""
    return replace(
        plain,
        project=project,
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        rotate=rotate,
        swiglu=swiglu,
        linear_cross_entropy=linear_cross_entropy if is_available() else plain.linear_cross_entropy,
        low_rank=low_rank,
        bottleneck=bottleneck,
        gated_attention=gated_attention,
    )
