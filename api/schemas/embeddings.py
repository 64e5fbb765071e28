"""Embeddings: what the SDK posts and reads."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag

from api.schemas.common import Reply, Wire
from api.schemas.jobs import Name
from api.schemas.text import TokenIds

MAX_INPUTS = 2048

SomeText = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[list[SomeText], Field(min_length=1, max_length=MAX_INPUTS)]
ListsOfIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]


def form_of(value: Any) -> str | None:
    """Say by its first item which form an input has, so that complaints are about that one."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, str):
        return "texts"
    if isinstance(first, int):
        return "ids"
    return "lists" if isinstance(first, list) else "messages"


def by_form(forms: str) -> Discriminator:
    """Return what chooses among the forms of an input, and names them where none is chosen."""
    return Discriminator(
        form_of, custom_error_type="input_form", custom_error_message=f"give {forms}"
    )


EmbeddingInput = Annotated[
    Annotated[SomeText, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[ListsOfIds, Tag("lists")],
    by_form("a text, a list of texts, a list of token ids, or a list of such lists"),
]


class EmbeddingRequest(Wire):
    """One or many texts to turn into vectors; `pooling` is ours."""

    model: Name
    input: EmbeddingInput
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, description="Only the base's own size.")
    user: str | None = Field(default=None, description="Accepted, not read.")
    pooling: Literal["mean", "last"] = Field(
        "mean", description="The mean of the final hidden states, or that of the last token."
    )

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
