"""The forms that run everywhere: torch's own operators under hand-written gradients."""

from models.nn.kernels import reference
from models.nn.kernels.plain.project import project
from models.nn.kernels.table import OpTable

PLAIN = OpTable(
    project=project,
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
