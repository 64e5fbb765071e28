"""What the engine and its callers say to each other: requests, replies, lines of a stream."""

from typing import Any, Literal

import msgspec


class AdapterRef(msgspec.Struct, frozen=True):
    """An adapter version: the name is a label, the digest is the identity."""

    name: str
    digest: str


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request; exactly one of `messages`, `prompt` and `prompt_ids` is given."""

    sampling: dict[str, Any]
    adapter: AdapterRef | None = None
    tenant: str | None = None
    """Whose requests may begin with what was computed for this one; none shares nothing."""
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_ids: list[int] | None = None
    stream: bool = True
    """Whether somebody reads along: the first token is told as it comes, then some milliseconds'
    worth at a time, more where many read. If not, many tokens are told together."""
    prediction: str | None = None
    """What the answer may say, in part or whole; it changes when tokens come, and none of them."""


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """One text to read; exactly one form is given.

    `text` is plain for embeddings; for labels it is put into the form that the adapter was
    trained on: a chat with its system turn, or a bare prompt.
    """

    text: str | None = None
    ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Final hidden states of each input, pooled and not normalised, under an adapter or none."""

    inputs: list[Input]
    adapter: AdapterRef | None = None
    tenant: str | None = None
    pooling: Literal["last", "mean"] = "mean"


class EmbedReply(msgspec.Struct, frozen=True, kw_only=True):
    """One vector an input, as little-endian float32 (base64 in JSON); tokens read an input."""

    vectors: list[bytes]
    tokens: list[int]


class ClassifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Label each input: by the adapter's own head, or else by how likely each label is as answer.

    A classifier has its own labels and refuses others; what generates text needs `labels`.
    """

    inputs: list[Input]
    adapter: AdapterRef | None = None
    tenant: str | None = None
    labels: list[str] | None = None


class ClassifyReply(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities of the labels for each input, in the order of `labels`."""

    labels: list[str]
    scores: list[list[float]]
    tokens: list[int]


class InspectRequest(msgspec.Struct, frozen=True):
    """Say whether the adapter in this stored tree fits the base that this engine serves."""

    digest: str


class InspectReply(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter's files are: `problems` is empty if it can be served."""

    method: dict[str, Any] | None = None
    parameters: int = 0
    matched: list[str] = []
    """Names of tensors that fit."""
    missing: list[str] = []
    unexpected: list[str] = []
    mismatched: list[str] = []
    problems: list[str] = []


# --- engine -> api, one JSON object a line --------------------------------------------------------


class TokenPiece(msgspec.Struct, frozen=True, gc=False):
    """A token as users see it; `bytes` are exact where `text` had to be replaced.

    There may be very many, and none is part of a cycle: the garbage collector leaves them out.
    """

    id: int
    text: str
    bytes: list[int]
    logprob: float | None


class TokenChoice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A generated (or echoed) token and the likeliest ones in its place."""

    id: int
    text: str
    bytes: list[int]
    logprob: float | None
    top: list[TokenPiece] = []
    silent: bool = False
    """Whether it adds no text, as what ends one does; `text` and `bytes` are its name then."""


class GenerateLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of what the engine streams."""


class GenerateOpened(GenerateLine, frozen=True, tag="opened"):
    """The request is one that can be served; its rows may have to wait."""


class GenerateStart(GenerateLine, frozen=True, tag="start"):
    """The request was admitted."""

    prompt_tokens: int


class GenerateDelta(GenerateLine, frozen=True, tag="delta"):
    """New text of choice `index`; the last one carries the reason it ended."""

    index: int
    text: str
    tokens: list[TokenChoice] = []
    finish_reason: Literal["stop", "length"] | None = None


class GenerateEnd(GenerateLine, frozen=True, tag="end"):
    """All choices have ended."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt that had not to be computed again."""
    accepted_tokens: int = 0
    """Tokens of the prediction that were computed before they were drawn."""
    rejected_tokens: int = 0
    """Those that were computed and then not drawn."""


class GenerateError(GenerateLine, frozen=True, tag="error"):
    """The request died after its first line."""

    status: int
    code: str
    message: str


AnyGenerateLine = GenerateOpened | GenerateStart | GenerateDelta | GenerateEnd | GenerateError
