"""Comparisons of methods: what is posted and shown."""

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from pydantic import Field, model_validator

from api.schemas.common import Reply, Wire
from api.schemas.jobs import Metadata, Name, Suffix, part_of_loop
from models.comparison import ComparisonResult
from models.loop_request import LoopRequest
from models.spec import MAX_SECONDS, MAX_TOKENS
from models.tables.comparison import Comparison

DEFAULT_TOKENS = 20_000
ENDS = {"n_epochs", "max_tokens", "max_seconds"}
"""What the budget decides."""

Metric = Literal["auto", "accuracy", "exact_match", "bleu"]

if TYPE_CHECKING:
    SharedLoop = Wire
else:
    SharedLoop = part_of_loop("SharedLoop", fields=set(LoopRequest.model_fields) - ENDS)


class Budget(Wire):
    """How much every method is trained: by tokens, or by the clock."""

    tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS)

    @model_validator(mode="after")
    def _one_of_both(self) -> "Budget":
        if (self.tokens is None) == (self.seconds is None):
            message = "give either `tokens` or `seconds`"
            raise ValueError(message)
        return self


class ComparisonCreate(Wire):
    """A request to train several methods on the same data at the same budget, and to rank them."""

    model: Name | None = Field(default=None, description="The base; the installation's by default.")
    training_file: Name
    validation_file: Name
    methods: Literal["all"] | list[dict[str, Any]] = Field(
        default="all",
        min_length=1,
        max_length=64,
        description="`peft` blocks, or every kind of `GET /v1/methods` with its defaults.",
    )
    budget: Budget = Budget(tokens=DEFAULT_TOKENS)
    training: SharedLoop | None = Field(default=None, description="Options that all jobs share.")
    metric: Metric = Field(
        default="auto", description="Accuracy for a small set of labels, else BLEU."
    )
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    suffix: Suffix | None = Field(default=None, description="A part of the models' names.")
    metadata: Metadata | None = None
    max_validation_rows: int = Field(
        default=200, ge=1, le=100_000, description="How many questions every model is asked."
    )


class ComparisonError(Reply):
    """Why a comparison failed."""

    code: str
    message: str


class ComparisonObject(Reply):
    """One comparison; `result` is the table as far as it goes."""

    id: str
    object: Literal["fine_tuning.comparison"] = "fine_tuning.comparison"
    created_at: int
    finished_at: int | None
    status: str
    model: str
    training_file: str
    validation_file: str
    budget: dict[str, Any]
    training: dict[str, Any]
    metric: str
    seed: int
    user_provided_suffix: str | None
    metadata: dict[str, str] | None
    max_validation_rows: int
    jobs: list[str]
    error: ComparisonError | None
    result: dict[str, Any]

    @classmethod
    def of(cls, row: Comparison, *, table: ComparisonResult) -> "ComparisonObject":
        """Show a row and its table."""
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            finished_at=None if row.finished_at is None else int(row.finished_at),
            status=row.state,
            model=row.base,
            training_file=row.training_file,
            validation_file=row.validation_file,
            budget=row.budget,
            training=row.training,
            metric=row.metric,
            seed=row.seed,
            user_provided_suffix=row.suffix,
            metadata=row.labels,
            max_validation_rows=row.max_validation_rows,
            jobs=[entry["job"] for entry in row.entries],
            error=ComparisonError(**row.error) if row.error else None,
            result=msgspec.to_builtins(table),
        )
