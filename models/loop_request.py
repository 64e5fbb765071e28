"""What people ask of the training loop, `auto` included, and how it becomes numbers."""

from math import ceil, log2
from typing import Annotated, Any, Literal

from pydantic import Field

from core.errors import InvalidRequest
from models.nn.methods import AnyMethod
from models.nn.methods.base import Method
from models.spec import (
    MAX_FORWARD_TOKENS,
    MAX_LEARNING_RATE,
    MAX_SECONDS,
    MAX_TOKENS,
    LoopSpec,
    Quantization,
    Spec,
)

Epochs = Annotated[int, Field(ge=1, le=1000)] | Literal["auto"]
BatchSize = Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]
Multiplier = Annotated[float, Field(gt=0, le=1000)] | Literal["auto"]


class LoopRequest(Spec):
    """Hyperparameters as posted: OpenAI's three, and ours beside them in the `training` block."""

    n_epochs: Epochs = Field(
        default="auto",
        description="How often the training file is gone through; `auto` follows its rows.",
    )
    batch_size: BatchSize = Field(
        default="auto", description="Rows of one step; `auto` follows the rows of the file."
    )
    learning_rate_multiplier: Multiplier = Field(
        default="auto", description="What the learning rate is multiplied by; `auto` is 1."
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=MAX_LEARNING_RATE, description="Instead of the method's own rate."
    )
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How the learning rate falls after the warm-up, if it does."
    )
    warmup_ratio: float = Field(
        default=0.05, ge=0, lt=1, description="The share of the run in which the rate rises."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients whose norm is larger are scaled down to it."
    )
    max_sequence_length: int = Field(
        default=1024,
        ge=8,
        le=131072,
        description="Tokens of a row that are kept; never more than the base's context.",
    )
    micro_batch_tokens: int = Field(
        default=1024,
        ge=8,
        le=MAX_FORWARD_TOKENS,
        description="Tokens of one forward, which a longer row may exceed; less takes less memory.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="What the base computes in: `auto` suits the machine; with `float32` no "
        "product is rounded.",
    )
    quantization: Quantization = Field(
        default="none",
        description="Hold the base's linear weights in 4 bits (`nf4`) or 8 (`int8`) while the "
        "adapter is trained over them (QLoRA). It saves memory, and on a machine without a GPU "
        "nothing else.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Train on this many tokens, however many epochs that is; the schedule is laid "
        "over them.",
    )
    max_seconds: float | None = Field(
        default=None, gt=0, le=MAX_SECONDS, description="Train for this long, likewise."
    )


def resolve(request: LoopRequest, *, method: AnyMethod, rows: int) -> LoopSpec:
    """Turn `auto` into numbers that suit `rows` rows; refuse an absurd rate or two ends."""
    _refuse_two_ends(request)
    refuse_replaced_weights(method, quantization=request.quantization)
    epochs, batch = request.n_epochs, request.batch_size
    multiplier = request.learning_rate_multiplier
    rate = request.learning_rate or method.learning_rate
    rate *= 1.0 if multiplier == "auto" else multiplier
    if not 0 < rate <= MAX_LEARNING_RATE:
        raise InvalidRequest(
            f"The learning rate comes to {rate:g}, not over 0 and up to {MAX_LEARNING_RATE:g}.",
            code="invalid_value",
            param="hyperparameters.learning_rate_multiplier",
        )
    shared: dict[str, Any] = request.model_dump(
        exclude={"n_epochs", "batch_size", "learning_rate", "learning_rate_multiplier"}
    )
    return LoopSpec(
        n_epochs=_suitable_epochs(rows) if epochs == "auto" else epochs,
        batch_size=_suitable_batch_size(rows, request) if batch == "auto" else batch,
        learning_rate=rate,
        **shared,
    )


def refuse_replaced_weights(method: Method, *, quantization: Quantization) -> None:
    """Raise `InvalidRequest` for a method that trains the very weights which are quantised."""
    if quantization != "none" and "weights" in method.sites:
        raise InvalidRequest(
            f"The method `{method.kind}` trains the base's own weights, which {quantization} "
            "would round; train it with quantization `none`, or choose another method.",
            code="invalid_value",
            param="training.quantization",
        )


def _refuse_two_ends(request: LoopRequest) -> None:
    epochs = None if request.n_epochs == "auto" else request.n_epochs
    ends = (epochs, request.max_tokens, request.max_seconds)
    if sum(end is not None for end in ends) > 1:
        raise InvalidRequest(
            "Give one of n_epochs, max_tokens and max_seconds: each says when training ends.",
            code="invalid_value",
            param="training",
        )


def _suitable_epochs(rows: int) -> int:
    """Return 3, but enough to see about 100 rows, and no more than see 25,000."""
    wanted = min(max(3, ceil(100 / rows)), 25)
    return min(wanted, max(1, 25_000 // rows))


def _suitable_batch_size(rows: int, request: LoopRequest) -> int:
    """Return a power of two near rows / 24, so that small sets still get a few dozen steps.

    A run that ends before its epoch does is given small batches for the same reason.
    """
    most = 5 if request.max_tokens is None and request.max_seconds is None else 3
    return int(2 ** min(max(round(log2(rows / 24)), 0), most))
