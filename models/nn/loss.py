"""The training losses.

Shapes: n labelled rows, v vocabulary, c classes.
"""

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    """Return the SUM of the token losses, a float32 scalar; the caller divides by its normaliser.

    `targets` (int64) holds for each row the id of the token after it.
    """
    return F.cross_entropy(logits_nv.float(), targets_n, reduction="sum")


def class_loss(scores_nc: Tensor, targets_n: Tensor) -> Tensor:
    """Return the SUM of the losses of n labels (int64) under scores of c classes, float32."""
    return F.cross_entropy(scores_nc.float(), targets_n, reduction="sum")
