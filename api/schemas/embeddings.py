"""Embeddings: what the SDK posts and reads."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from api.schemas.common import Reply, Wire
from api.schemas.jobs import Name
from api.schemas.text import TokenIds

MAX_INPUTS = 2048
FORMS = "a text, a list of texts, a list of token ids, or a list of such lists"

SomeText = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[list[SomeText], Field(min_length=1, max_length=MAX_INPUTS)]
ListsOfIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingRequest(Wire):
    """One or many texts to turn into vectors; `pooling` is ours."""

    model: Name
    input: SomeText | Texts | TokenIds | ListsOfIds
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, description="Only the base's own size.")
    user: str | None = Field(default=None, description="Accepted, not read.")
    pooling: Literal["mean", "last"] = Field(
        "mean", description="The mean of the final hidden states, or that of the last token."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _say_it_in_one_sentence(cls, value: Any) -> Any:
        """Refuse what no form allows; the union would complain of every form it tried."""
        if isinstance(value, list) and value and not isinstance(value[0], int):
            if len(value) > MAX_INPUTS:
                raise ValueError(f"at most {MAX_INPUTS} inputs")
            if not all(isinstance(item, type(value[0])) for item in value):
                raise ValueError(f"give {FORMS}")
            if "" in value or [] in value:
                raise ValueError("no input may be empty")
        elif value in ("", []):
            raise ValueError("the input is empty")
        elif not isinstance(value, str | list):
            raise ValueError(f"give {FORMS}")
        return value

    @property
    def inputs(self) -> list[str | list[int]]:
        """Every input, in order."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)


class ReadUsage(Reply):
    """How many tokens were read; nothing is written."""

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, tokens: int) -> "ReadUsage":
        """Count tokens that were read."""
        return cls(prompt_tokens=tokens, total_tokens=tokens)


class Embedding(Reply):
    """One vector of length 1: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Reply):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: ReadUsage
