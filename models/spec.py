"""What is posted, stored in the row, run, and saved in the artifact; and what processes say.

Specs are pydantic (they validate what people write); messages between our own processes are
msgspec structs (they are many, small, and never wrong by accident).
"""

from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from models.nn.methods import AnyMethod

MAX_LEARNING_RATE = 10.0
MAX_FORWARD_TOKENS = 2**20
MAX_TOKENS = 10**12
MAX_SECONDS = 10**7
"""Four months."""
Quantization = Literal["none", "nf4", "int8"]


class Spec(BaseModel):
    """Base of the specs: frozen, numbers finite, and a key that nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoopSpec(Spec):
    """The optimiser and schedule of one job, every value resolved."""

    n_epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=1, le=4096, description="Rows of the data set in one step.")
    learning_rate: float = Field(gt=0, le=MAX_LEARNING_RATE)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_sequence_length: int = Field(default=1024, ge=8, le=131072)
    micro_batch_tokens: int = Field(
        default=1024, ge=8, le=MAX_FORWARD_TOKENS, description="Tokens of one forward."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Quantization = "none"
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKENS, description="In place of n_epochs."
    )
    max_seconds: float | None = Field(
        default=None, gt=0, le=MAX_SECONDS, description="In place of n_epochs."
    )


class TrainSpec(Spec):
    """One training run: on what base, by what method, how long, from what seed."""

    base: str
    method: AnyMethod
    loop: LoopSpec
    seed: int = Field(ge=0, lt=2**31)


class SamplingSpec(Spec):
    """How tokens are drawn."""

    max_tokens: int | None = Field(
        default=None, ge=0, description="0: none; the prompt is computed, and echoed if wanted."
    )
    min_tokens: int = Field(default=0, ge=0)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1, description="0: the likeliest token alone.")
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = Field(default=1, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    echo: bool = Field(default=False, description="Completions: give the prompt back first.")


# --- supervisor -> trainer, a command a line: `train FOLDER`, or `pause`, `stop`, `drop ORDER` ----


class TrainOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What `job.json` in a job folder says; paths are local to the worker."""

    job_id: str
    spec: dict[str, Any]
    base_folder: str
    training_file: str
    work_folder: str
    validation_file: str | None = None
    parent_folder: str | None = None
    resume_folder: str | None = None
    resume_seconds: float = 60.0
    threads: int = 0
    device: str = "auto"
    provenance: dict[str, Any] = {}


# --- trainer -> supervisor, one JSON object a line on stdout -----------------------------------


class TrainerMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what a trainer says."""


class Alive(TrainerMessage, frozen=True, tag="alive"):
    """Long work goes on that has nothing to show yet: tokenising, evaluating."""


class Validated(TrainerMessage, frozen=True, tag="validated"):
    """The data as it will be trained: rows kept, dropped and truncated, tokens, labelled share."""

    report: dict[str, Any]


class Started(TrainerMessage, frozen=True, tag="started"):
    """The first step is about to be computed."""

    total_steps: int
    trained_parameters: int
    resumed_step: int


class Metrics(TrainerMessage, frozen=True, tag="metrics"):
    """One optimiser step, or one evaluation."""

    step: int
    values: dict[str, float]
    tokens_per_second: float
    eta_seconds: float
    trained_tokens: int


class CheckpointSaved(TrainerMessage, frozen=True, tag="checkpoint"):
    """A whole checkpoint lies on disk; `epoch` ones are shown to users and can be called."""

    step: int
    kind: Literal["epoch", "resume"]
    adapter_folder: str
    """Empty for a `resume` one."""
    resume_folder: str
    """Empty where the run is not saved: at its end, and while one before is yet to be stored."""
    metrics: dict[str, float]
    over: bool = False
    """Whether this is the end of the run, which is published from the adapter's folder."""


class Succeeded(TrainerMessage, frozen=True, tag="succeeded"):
    """Training is over; the artifact and the results file await publishing."""

    step: int
    adapter_folder: str
    results_file: str
    metrics: dict[str, float]
    trained_tokens: int
    method: dict[str, Any] | None = None
    """The method with what the data decided, such as labels."""
    usage: dict[str, float] = {}
    """`train_seconds`, `tokens_per_second`, `peak_bytes`."""


class Stopped(TrainerMessage, frozen=True, tag="stopped"):
    """The trainer saved a resume checkpoint and ended, because it was told to."""

    step: int


class Failed(TrainerMessage, frozen=True, tag="failed"):
    """The job cannot succeed as posted: bad data, NaN, out of memory."""

    code: str
    message: str
    param: str | None = None
    problems: list[dict[str, Any]] = []


class Broke(TrainerMessage, frozen=True, tag="broke"):
    """The trainer met a fault of its own in this job, which another try may not meet."""

    reason: str
    code: str = "too_many_attempts"
    """What the job's error is called if no try ends well."""
    alone: bool = False
    """Whether all further tries are to share a trainer with nobody."""


AnyTrainerMessage = (
    Alive | Validated | Started | Metrics | CheckpointSaved | Succeeded | Stopped | Failed | Broke
)

FINAL = (Succeeded, Failed, Stopped, Broke)
"""A job says one of these last."""


class Said(msgspec.Struct, frozen=True):
    """A message, and the name of the folder of the order that it is about."""

    order: str
    message: AnyTrainerMessage
