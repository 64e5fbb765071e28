"""Which tokens a trained prompt starts from: those of a text, or common ones.

Importing this loads no torch. Shapes: p rows of the prompt, d hidden.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Annotated, Literal

import lazy_loader
from pydantic import BaseModel, Field

from core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem
    from models.nn.shape import Shape
else:
    torch = lazy_loader.load("torch")

_COMMON = 5000
_PROBES = 1024


TokenId = Annotated[int, Field(ge=0)]


class StartsFromTokens(BaseModel):
    """The fields of a trained prompt that say what it starts from."""

    start: Literal["text", "vocabulary", "random"] = Field(
        "text",
        alias="init",
        description="What training starts from: what the base makes of init_text, or of common "
        "tokens drawn at random, or noise of the same size.",
    )
    init_text: str = Field(
        "Read the following text and answer it as in the examples:",
        min_length=1,
        max_length=20000,
        description="The text that `text` starts from, repeated or cut to the length that is "
        "trained.",
    )
    init_ids: tuple[TokenId, ...] = Field(
        (),
        description="The tokens of init_text; the job fills this in.",
        json_schema_extra={"readOnly": True},
    )


def text_ids(text: str, problem: Problem, *, length: int) -> tuple[int, ...]:
    """Return `length` ids of a text, repeated or cut as PEFT does; an empty one is an error."""
    ids = problem.encode(text)
    if not ids:
        raise InvalidRequest(
            "init_text has no tokens; write a text to start from, or set init to 'vocabulary'.",
            code="invalid_value",
            param="peft.init_text",
        )
    return tuple((ids * ceil(length / len(ids)))[:length])


def starting_ids(
    given: Sequence[int], base: Base, *, length: int, generator: torch.Generator
) -> Tensor:
    """Return (p,) int64: the ids given, or else common tokens drawn at random.

    Byte-pair vocabularies are ordered by merges, so common tokens have small ids; drawing from the
    5,000 most common is Lester et al.'s way (arXiv 2104.08691, section 3.2).
    """
    if not given:
        common = min(_COMMON, base.shape.vocab)
        return torch.randint(common, (length,), generator=generator)
    if len(given) != length or max(given) >= base.shape.vocab:
        raise InvalidRequest(
            f"init_ids must be {length} ids below {base.shape.vocab}; leave it out to have it "
            "made from init_text.",
            code="invalid_value",
            param="peft.init_ids",
        )
    return torch.tensor(given)


def embedding_std(base: Base) -> float:
    """Return the standard deviation of what a base's embedding gives, from some of its tokens."""
    step = ceil(base.shape.vocab / _PROBES)
    return float(base.embed(torch.arange(0, base.shape.vocab, step, device=base.device)).std())


def refuse_long(length: int, shape: Shape, *, param: str) -> None:
    """Raise `InvalidRequest` where a prompt leaves less than half of the context."""
    if 2 * length > shape.context:
        raise InvalidRequest(
            f"{param} is {length}, more than half of this base's context of {shape.context}; "
            f"at most {shape.context // 2} are possible.",
            code="invalid_value",
            param=f"peft.{param}",
        )
