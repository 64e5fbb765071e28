"""Classifications: texts or conversations in, a label and the scores of all labels out."""

from typing import Annotated, Literal

from pydantic import Field, Tag, field_validator

from api.schemas.chat import MAX_MESSAGES, Message
from api.schemas.common import Reply, Wire
from api.schemas.embeddings import ReadUsage, SomeText, by_form
from api.schemas.jobs import Name

MAX_INPUTS = 1024
MAX_LABELS = 256
LONGEST_LABEL = 256

Texts = Annotated[list[SomeText], Field(min_length=1, max_length=MAX_INPUTS)]
Conversation = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
Conversations = Annotated[list[Conversation], Field(min_length=1, max_length=MAX_INPUTS)]

ClassificationInput = Annotated[
    Annotated[SomeText, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[Conversation, Tag("messages")]
    | Annotated[Conversations, Tag("lists")],
    by_form("a text, a list of texts, a list of messages, or a list of such lists"),
]


class ClassificationRequest(Wire):
    """What to label, by a classifier's own labels or, for what generates text, by these."""

    model: Name
    input: ClassificationInput
    labels: list[str] | None = Field(
        default=None,
        fail_fast=True,
        description="For generative models: the answers to choose from.",
    )
    top_k: int | None = Field(default=None, ge=1, description="Show only the likeliest labels.")
    user: str | None = Field(default=None, description="Accepted, not read.")

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str] | None) -> list[str] | None:
        if labels is None:
            return None
        if not 2 <= len(labels) <= MAX_LABELS:
            raise ValueError(f"give 2 to {MAX_LABELS} labels")
        if len(set(labels)) != len(labels):
            raise ValueError("the labels must be distinct")
        if not all(label.strip() and len(label) <= LONGEST_LABEL for label in labels):
            raise ValueError(f"a label has 1 to {LONGEST_LABEL} characters, not all of them blank")
        return labels

    @property
    def inputs(self) -> list[str | list[Message]]:
        """Every input, in order."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], Message):
            return [self.input]
        return list(self.input)


class Score(Reply):
    """How likely a label is, in 0..1."""

    label: str
    score: float


class Classification(Score):
    """The likeliest label of one input, and all that were asked for, likeliest first."""

    object: Literal["classification"] = "classification"
    index: int
    scores: list[Score]


class ClassificationList(Reply):
    """The labels, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Classification]
    model: str
    usage: ReadUsage
