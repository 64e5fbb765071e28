"""How fast this machine multiplies: what one large product of torch's reaches with all threads."""

import time

import torch

from models.nn.backbone import pick_dtype

ROWS, INNER, OUT = 1024, 576, 1536
REPEATS = 30


def measure_rate() -> float:
    """Return multiplications and additions a second, in the dtype that this machine trains in."""
    rows, weight = (torch.randn(size).to(pick_dtype()) for size in ((ROWS, INNER), (OUT, INNER)))
    best = 1e9
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * ROWS * INNER * OUT / best
