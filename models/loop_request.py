"""What people ask of the training loop, `auto` included, and how it becomes numbers."""

from math import log2
from typing import Annotated, Any, Literal

from pydantic import Field

from models.nn.methods import AnyMethod
from models.spec import LoopSpec, Spec

Auto = Literal["auto"]
Epochs = Annotated[int, Field(ge=1, le=1000)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Multiplier = Annotated[float, Field(gt=0, le=1000)]


class LoopRequest(Spec):
    """Hyperparameters as posted: OpenAI's three, and ours beside them in the `training` block."""

    n_epochs: Epochs | Auto = "auto"
    batch_size: BatchSize | Auto = "auto"
    learning_rate_multiplier: Multiplier | Auto = "auto"
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Instead of the method's own rate."
    )
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_sequence_length: int = Field(default=1024, ge=8, le=131072)
    micro_batch_tokens: int = Field(default=1024, ge=8)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


def resolve(request: LoopRequest, *, method: AnyMethod, rows: int) -> LoopSpec:
    """Turn `auto` into numbers that suit `rows` rows of data.

    Epochs: 3, but at least about 100 rows seen and at most 25,000. Batch: a power of two near
    rows / 24, from 1 to 32, so that small sets still get a few dozen steps.
    """
    epochs = request.n_epochs
    if epochs == "auto":
        epochs = min(max(3, -(-100 // rows)), 25)
        epochs = max(1, min(epochs, 25_000 // rows)) if rows * epochs > 25_000 else epochs
    batch = request.batch_size
    if batch == "auto":
        batch = 2 ** min(max(round(log2(max(rows / 24, 1))), 0), 5)
    multiplier = request.learning_rate_multiplier
    scale = 1.0 if multiplier == "auto" else multiplier
    rate = (request.learning_rate or method.learning_rate) * scale
    shared: dict[str, Any] = request.model_dump(
        exclude={"n_epochs", "batch_size", "learning_rate", "learning_rate_multiplier"}
    )
    return LoopSpec(n_epochs=epochs, batch_size=batch, learning_rate=rate, **shared)
