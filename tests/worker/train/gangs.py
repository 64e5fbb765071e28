"""Jobs for gangs, and how they are trained together."""

from typing import Any

from tests.worker.train.conftest import ROWS, Recording, values_of, weights_hash
from worker.train.gang import Gang
from worker.train.run import train

SHORT = [{"text": letter} for letter in "abcdefgh"]
"""Streams of very few rows: for those a matrix library sums in another order."""
JOBS: list[dict[str, Any]] = [
    {"method": {"type": "lora", "rank": 4, "dropout": 0.1}, "validation": ROWS[:3]},
    {"method": {"type": "ia3"}, "rows": SHORT, "loop": {"batch_size": 1, "scheduler": "constant"}},
    {
        "method": {"type": "soft_prompt", "prompt_length": 3},
        "loop": {"batch_size": 2, "learning_rate": 0.1, "micro_batch_tokens": 60},
    },
    {
        "method": {"type": "dora", "rank": 2, "dropout": 0.3},
        "loop": {"scheduler": "cosine", "weight_decay": 0.1, "batch_size": 3},
    },
    {"method": {"type": "llama_adapter_v2"}, "rows": ROWS[7:], "loop": {"max_grad_norm": 0.01}},
    {"method": {"type": "prefix", "prefix_length": 2}, "rows": ROWS[:5]},
    {"method": {"type": "bottleneck"}, "rows": SHORT[:4], "loop": {"batch_size": 2}},
    {"method": {"type": "ln_tuning"}, "loop": {"max_tokens": 150, "n_epochs": 1, "batch_size": 1}},
]


def run_together(orders, channels=None):
    """Train orders in one gang; return what was said of each."""
    channels = channels or [Recording() for _ in orders]
    gang = Gang()
    for order, channel in zip(orders, channels, strict=True):
        gang.join(train(order, channel), channel)
    while gang.members:
        gang.beat()
    return [channel.messages for channel in channels]


def check_equal(found, expected):
    assert type(found[-1]).__name__ == "Succeeded"
    assert values_of(found) == values_of(expected)
    assert weights_hash(found) == weights_hash(expected)
