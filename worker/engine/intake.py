"""From a posted request to token ids and limits, refused here if it can never be served."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from core.errors import InvalidRequest
from models.nn.chat import Renderer
from models.nn.messages import check_text, normalise
from models.spec import SamplingSpec
from models.wire import Input


def read_sampling(block: dict[str, Any]) -> SamplingSpec:
    """Validate the sampling block; `InvalidRequest` names the first key at fault."""
    try:
        return SamplingSpec.model_validate(block)
    except ValidationError as error:
        raise _refusal(error) from error


def read_generation(
    source: Input, prediction: str | None, *, renderer: Renderer, vocab: int, context: int
) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt (`read_prompt`), and of what its answer may say, if anything.

    `InvalidRequest` also for a prediction that no context could hold.
    """
    prompt = read_prompt(source, renderer=renderer, vocab=vocab, context=context)
    if not prediction:
        return prompt, []
    text = check_text(prediction, param="prediction")
    _check_size(text, most_bytes=context * renderer.text.longest_token, param="prediction")
    return prompt, renderer.encode(text, most=context)[len(renderer.begin_ids) :][:context]


def read_prompt(source: Input, *, renderer: Renderer, vocab: int, context: int) -> list[int]:
    """Return the prompt's token ids, as training would see them; at least one.

    Raises `InvalidRequest` unless exactly one form of prompt is given and it is well formed; and
    before all of it is tokenised if its text cannot fit.
    """
    check_forms(source, names="messages, prompt and prompt_ids")
    most_bytes = context * renderer.text.longest_token
    if source.messages is not None:
        text = "".join(turn.content for turn in normalise(source.messages))
        _check_size(text, most_bytes=most_bytes, param="messages")
        ids = renderer.prompt(source.messages, most=context)
        return _require_counted(ids, renderer=renderer, context=context, param="messages")
    if source.text is not None:
        text = check_text(source.text, param="prompt")
        _check_size(text, most_bytes=most_bytes, param="prompt")
        ids = renderer.completion_prompt(text, most=context)
        return _require_counted(ids, renderer=renderer, context=context, param="prompt")
    ids = source.ids or []
    check_ids(ids, vocab=vocab, param="prompt")
    return ids or [renderer.eos_id]


def check_inputs(inputs: Sequence[Input], *, renderer: Renderer, vocab: int, context: int) -> None:
    """Refuse inputs that can never be read; what their tokens are depends on their adapter."""
    if not inputs:
        raise InvalidRequest("Give at least one input.", code="invalid_prompt", param="inputs")
    for index, source in enumerate(inputs):
        _check_input(source, renderer=renderer, vocab=vocab, context=context, param=name_of(index))


def read_input(source: Input, *, renderer: Renderer, param: str) -> list[int]:
    """Return the ids of an input as it stands, at least one; what is shown before it is not."""
    ids = source.ids or []
    if source.messages is not None:
        ids = renderer.prompt(source.messages)
    if source.text:
        ids = renderer.encode(source.text)
    if not ids:
        raise empty_input(param)
    return ids


def name_of(index: int) -> str:
    """Return what errors call an input."""
    return f"inputs[{index}]"


def _check_input(
    source: Input, *, renderer: Renderer, vocab: int, context: int, param: str
) -> None:
    check_forms(source, names="text, ids and messages", param=param)
    if source.ids is not None:
        check_ids(source.ids, vocab=vocab, param=param)
        if not source.ids:
            raise empty_input(param)
    text = source.text or ""
    if source.messages is not None:
        text = "".join(turn.content for turn in normalise(source.messages))
    check_text(text, param=param)
    _check_size(text, most_bytes=context * renderer.text.longest_token, param=param)
    if renderer.text.is_long(text, most=context):
        ids = _least(source, renderer=renderer, context=context)
        _require_counted(ids, renderer=renderer, context=context, param=param)


def _least(source: Input, *, renderer: Renderer, context: int) -> list[int]:
    """Return what an input has at least, whatever form it is put into: templates strip texts."""
    if source.messages is not None:
        return renderer.prompt(source.messages, most=context)
    return renderer.encode((source.text or "").strip(), most=context)


def check_forms(source: Input, *, names: str, param: str | None = None) -> None:
    """Raise `InvalidRequest` unless a text is given in exactly one form."""
    forms = (source.messages, source.text, source.ids)
    if sum(form is not None for form in forms) != 1:
        raise InvalidRequest(f"Give exactly one of {names}.", code="invalid_prompt", param=param)


def check_ids(ids: list[int], *, vocab: int, param: str) -> None:
    """Raise `InvalidRequest` for a token that the base does not have."""
    if any(not 0 <= token < vocab for token in ids):
        raise InvalidRequest(
            f"Token ids must be between 0 and {vocab - 1}.", code="invalid_prompt", param=param
        )


def empty_input(param: str) -> InvalidRequest:
    """Return the error for a text without a token."""
    return InvalidRequest(
        "This input is empty; give it at least one token.", code="invalid_prompt", param=param
    )


def token_limit(tokens: int, *, sampling: SamplingSpec, context: int, prefix: int = 0) -> int:
    """Return how many tokens may follow a prompt; raises `InvalidRequest` if they do not fit.

    `prefix` positions are the adapter's own.
    """
    wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
    if prefix + tokens + wanted > context:
        taken = f", the adapter takes {prefix} of them" if prefix else ""
        left = "none is left for an answer"
        if sampling.max_tokens is not None:
            left = f"{wanted} more were asked for"
        raise InvalidRequest(
            f"This engine's context is {context} tokens{taken}; the prompt has {tokens} tokens "
            f"and {left}.",
            code="context_length_exceeded",
            param="messages" if prefix + tokens >= context else "max_tokens",
        )
    return context - prefix - tokens if sampling.max_tokens is None else wanted


def _require_counted(ids: list[int], *, renderer: Renderer, context: int, param: str) -> list[int]:
    """Return ids unless they are so many that the rest of their text need not be read."""
    if renderer.text.outgrow(ids, context):
        least = len(ids) - renderer.text.longest_token
        raise InvalidRequest(
            f"This engine's context is {context} tokens; this text has more than {least}.",
            code="context_length_exceeded",
            param=param,
        )
    return ids


def _check_size(text: str, *, most_bytes: int, param: str) -> None:
    size = len(text.encode())
    if size > most_bytes:
        raise InvalidRequest(
            f"This text has {size} bytes; the context of this engine holds {most_bytes} at most.",
            code="context_length_exceeded",
            param=param,
        )


def _refusal(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    param = ".".join(map(str, first["loc"]))
    return InvalidRequest(f"{param}: {first['msg']}", param=param)
