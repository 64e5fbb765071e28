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


class ModelCard(Reply):
    """A base, an adapter or a checkpoint."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    graftwork: CardDetails


class MethodCard(Reply):
    """One way to tune: its options as JSON schema and its size on this base."""

    id: str
    object: Literal["method"] = "method"
    type: str
    description: str
    options: dict[str, Any] = Field(serialization_alias="schema")
    parameters: int | None
    shares_batch: bool
    learning_rate: float
