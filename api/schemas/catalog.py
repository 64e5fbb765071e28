"""What can be called, as `client.models` shows it, and the methods it can be tuned by."""

from typing import Any, Literal

from pydantic import Field

from api.schemas.common import Reply


class CardDetails(Reply):
    """What OpenAI's object has no place for."""

    base: str
    kind: Literal["base", "adapter", "checkpoint"]
    method: dict[str, Any] | None = None
    parameters: int | None = None
    digest: str | None = None
    bytes: int | None = None
    job: str | None = None
    step: int | None = None
    source: dict[str, Any] | None = None


class ModelCard(Reply):
    """A base, an adapter or a checkpoint."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    graftwork: CardDetails


class ImportReport(Reply):
    """What was found in an adapter that somebody brought; it can be called if `problems` is empty.

    Names of tensors are those of the file; `missing` ones should be there, `mismatched` ones have
    other dimensions than this base needs. `ignored` files were not read.
    """

    format: Literal["peft", "graftwork"]
    method: dict[str, Any] | None
    parameters: int
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    problems: list[str]
    warnings: list[str]
    ignored: list[str]


class ImportedModel(ModelCard):
    """An adapter that was brought, and what was found in it."""

    report: ImportReport


class MethodCard(Reply):
    """One way to tune: its options as JSON schema and its size on this base."""

    id: str
    object: Literal["method"] = "method"
    type: str
    description: str
    options: dict[str, Any] = Field(serialization_alias="schema")
    parameters: int | None
    """Trained with the defaults, and two labels; None where the data decide, or no base is here."""
    objective: Literal["generation", "classification"]
    shares_batch: bool
    starts_as_base: bool
    peft_type: str | None
    learning_rate: float
