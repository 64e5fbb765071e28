"""Chat completions: request, whole answer, and chunks of a stream."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.schemas.common import Reply, Wire
from api.schemas.sampling import FinishReason, SamplingRequest, Usage
from core.errors import InvalidRequest

MAX_MESSAGES = 1024


class TextPart(Wire):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError(
                "unsupported_content",
                "parts of type '{kind}' are not supported; use 'text'",
                {"kind": kind[:32]},
            )
        return part


Content = str | Annotated[list[TextPart], Field(min_length=1, max_length=256)]


def joined(content: Content) -> str:
    """Return a content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Message(Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(default=None, max_length=64, description="Accepted, not shown.")
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    weight: Literal[0, 1] | None = Field(default=None, description="Read in training only.")

    @field_validator("role", mode="before")
    @classmethod
    def _only_talk(cls, role: Any) -> Any:
        if role in ("tool", "function"):
            raise PydanticCustomError(
                "unsupported_content", "the role '{role}' is not supported", {"role": role}
            )
        return role

    @property
    def text(self) -> str:
        """The content as one text, joined as in training."""
        return joined(self.content)


class Prediction(Wire):
    """What the answer may say, such as the text that is to be edited; it changes no token."""

    type: Literal["content"]
    content: Content


class ChatRequest(SamplingRequest):
    """A conversation to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    prediction: Prediction | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
            )
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequest(
                "Give 'max_completion_tokens' alone, or 'max_tokens' with the same number.",
                param="max_tokens",
            )
        return self


class TopToken(Reply):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken):
    """A token of the answer."""

    top_logprobs: list[TopToken]


class ChatLogprobs(Reply):
    """The tokens behind a piece of text."""

    content: list[ChatToken]
    refusal: None = None


class ChatMessage(Reply):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Reply):
    """One whole answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Reply):
    """The reply to a request without a stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunkChoice(Reply):
    """What a chunk adds to one answer."""

    index: int
    delta: dict[str, str]
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Reply):
    """One event of a stream; the last one may carry the counts and no choice."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
