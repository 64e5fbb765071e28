"""From a posted request to token ids and limits, refused here if it can never be served."""

from typing import Any

from pydantic import ValidationError

from core.errors import InvalidRequest
from models.nn.chat import Renderer
from models.nn.messages import check_text, normalise
from models.spec import GenerateRequest, SamplingSpec


def read_sampling(block: dict[str, Any]) -> SamplingSpec:
    """Validate the sampling block; `InvalidRequest` names the first key at fault."""
    try:
        return SamplingSpec.model_validate(block)
    except ValidationError as error:
        raise _refusal(error) from error


def read_prompt(
    request: GenerateRequest, *, renderer: Renderer, vocab: int, context: int
) -> list[int]:
    """Return the prompt's token ids, as training would see them; at least one.

    Raises `InvalidRequest` unless exactly one form of prompt is given and it is well formed; and
    before it is tokenised if its text cannot fit whatever its tokens are.
    """
    forms = (request.messages, request.prompt, request.prompt_ids)
    if sum(form is not None for form in forms) != 1:
        raise InvalidRequest(
            "Give exactly one of messages, prompt and prompt_ids.", code="invalid_prompt"
        )
    most_bytes = context * renderer.longest_token
    if request.messages is not None:
        text = "".join(turn.content for turn in normalise(request.messages))
        _check_size(text, most_bytes=most_bytes, param="messages")
        return renderer.prompt(request.messages)
    if request.prompt is not None:
        text = check_text(request.prompt, param="prompt")
        _check_size(text, most_bytes=most_bytes, param="prompt")
        return renderer.completion_prompt(text)
    ids = request.prompt_ids or []
    if any(not 0 <= token < vocab for token in ids):
        raise InvalidRequest(
            f"Token ids must be between 0 and {vocab - 1}.", code="invalid_prompt", param="prompt"
        )
    return ids or [renderer.eos_id]


def token_limit(prompt: list[int], *, sampling: SamplingSpec, context: int) -> int:
    """Return how many tokens may follow the prompt; raises `InvalidRequest` if they do not fit."""
    wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
    if len(prompt) + wanted > context:
        raise InvalidRequest(
            f"This engine's context is {context} tokens; the prompt has {len(prompt)} and "
            f"{wanted} more were asked for.",
            code="context_length_exceeded",
            param="messages" if len(prompt) >= context else "max_tokens",
        )
    return sampling.max_tokens or context - len(prompt)


def _check_size(text: str, *, most_bytes: int, param: str) -> None:
    size = len(text.encode())
    if size > most_bytes:
        raise InvalidRequest(
            f"The prompt has {size} bytes; the context of this engine holds {most_bytes} at most.",
            code="context_length_exceeded",
            param=param,
        )


def _refusal(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    param = ".".join(map(str, first["loc"]))
    return InvalidRequest(f"{param}: {first['msg']}", param=param)
