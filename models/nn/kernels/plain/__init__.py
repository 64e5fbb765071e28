"""The forms that run everywhere: torch's own operators under hand-written gradients."""

from models.nn.kernels import reference
from models.nn.kernels.plain.attend import attend_packed
from models.nn.kernels.plain.cross_entropy import linear_cross_entropy
from models.nn.kernels.plain.pointwise import add_rms_norm, rms_norm, rotate, scale_shift, swiglu
from models.nn.kernels.plain.project import project
from models.nn.kernels.table import OpTable

PLAIN = OpTable(
    project=project,
    scale_shift=scale_shift,
    rms_norm=rms_norm,
    add_rms_norm=add_rms_norm,
    rotate=rotate,
    swiglu=swiglu,
    attend_packed=attend_packed,
    linear_cross_entropy=linear_cross_entropy,
    low_rank=reference.low_rank,
    bottleneck=reference.bottleneck,
    gated_attention=reference.gated_attention,
    row_scale=reference.row_scale,
    row_shift=reference.row_shift,
)
