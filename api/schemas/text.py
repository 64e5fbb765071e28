"""Text completions: request, whole answer, and chunks of a stream (the same shape)."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from api.schemas.common import Reply
from api.schemas.sampling import FinishReason, SamplingRequest, Usage

MAX_PROMPTS = 128
MAX_TOKEN_IDS = 131072

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]],
    Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True),
]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
ListsOfIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]


class TextRequest(SamplingRequest):
    """One or many prompts to go on with."""

    prompt: str | Texts | TokenIds | ListsOfIds | None
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_length(cls, value: Any) -> Any:
        """Say it in one sentence; the union would complain of every item as well."""
        if not isinstance(value, list) or not value:
            return value
        most, things = MAX_PROMPTS, "prompts"
        if isinstance(value[0], int):
            most, things = MAX_TOKEN_IDS, "token ids"
        if len(value) > most:
            raise ValueError(f"at most {most} {things}")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt, in order; null is an empty text, as the SDK's types allow."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextLogprobs(Reply):
    """Tokens, where each begins in the text, and what else could have stood there."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Reply):
    """One answer, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(Reply):
    """A whole reply, or one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
