"""What chat and text completions have in common: how tokens are drawn, what is not offered."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from api.schemas.common import Reply, Wire
from api.schemas.jobs import Name
from core.errors import InvalidRequest

HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
"""Parameters that change no token of the answer: accepted and not read."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_json": (),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Parameters that are not offered, or by one kind of request only, with the values (beside null)
that ask for nothing."""

StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopTexts = Annotated[list[StopText], Field(max_length=4)]


class StreamOptions(Wire):
    """How a stream ends; the two others are accepted and change nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingRequest(Wire):
    """The part of both requests that says how tokens are drawn."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopText | StopTexts | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _set_aside_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        neutral = NEUTRAL.keys() - cls.model_fields.keys()
        for name in neutral & body.keys():
            if body[name] is not None and body[name] not in NEUTRAL[name]:
                raise InvalidRequest(
                    f"The parameter '{name}' is not supported; leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
        return {
            key: value for key, value in body.items() if key not in HARMLESS and key not in neutral
        }

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class PromptTokens(Reply):
    """What the tokens that went in cost."""

    cached_tokens: int = 0
    """Those that did not have to be computed again."""


class CompletionTokens(Reply):
    """How a prediction fared; zeros where none was given, or the engine had no time to spare."""

    accepted_prediction_tokens: int = 0
    """Tokens of the prediction that were computed before they were drawn, some perhaps twice."""
    rejected_prediction_tokens: int = 0
    """Those that were computed and then not drawn; they are not among `completion_tokens`."""


class Usage(Reply):
    """How many tokens went in and came out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens = PromptTokens()
    completion_tokens_details: CompletionTokens = CompletionTokens()


FinishReason = Literal["stop", "length"]
