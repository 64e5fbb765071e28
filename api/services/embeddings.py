"""Use case: turn texts into vectors of length 1."""

import base64

import numpy as np
from starlette.concurrency import run_in_threadpool

from api.engine_client import EngineClient
from api.schemas.embeddings import Embedding, EmbeddingList, EmbeddingRequest, ReadUsage
from api.services.catalog import Target
from api.services.reading import in_batches, to_inputs
from core.errors import GraftworkError, InvalidRequest
from models.wire import EmbedReply, EmbedRequest, Input

BATCH = 32


async def embed(
    engine: EngineClient, body: EmbeddingRequest, target: Target, *, hidden: int | None
) -> EmbeddingList:
    """Return the vectors of all inputs."""
    _check(body, target, hidden=hidden)

    async def ask(inputs: list[Input]) -> EmbedReply:
        return await engine.embed(
            EmbedRequest(
                inputs=inputs, adapter=target.adapter, tenant=target.tenant, pooling=body.pooling
            )
        )

    replies = await in_batches(to_inputs(body.inputs), size=BATCH, ask=ask)
    return await run_in_threadpool(_assemble, body, replies)


def _check(body: EmbeddingRequest, target: Target, *, hidden: int | None) -> None:
    if target.class_labels is not None:
        raise InvalidRequest(
            f"{target.name!r} is a classifier; ask POST /v1/classifications, or embed with the "
            f"base {target.base!r}.",
            code="not_generative",
            param="model",
        )
    if body.dimensions is not None and hidden is not None and body.dimensions != hidden:
        raise InvalidRequest(
            f"Invalid value for 'dimensions': vectors of this base have {hidden}; leave it out.",
            code="invalid_value",
            param="dimensions",
        )


def _assemble(body: EmbeddingRequest, replies: list[EmbedReply]) -> EmbeddingList:
    vectors = [_normalise(vector) for reply in replies for vector in reply.vectors]
    as_text = body.encoding_format == "base64"
    return EmbeddingList(
        data=[
            Embedding(
                index=index,
                embedding=base64.b64encode(vector.tobytes()).decode()
                if as_text
                else vector.tolist(),
            )
            for index, vector in enumerate(vectors)
        ],
        model=body.model,
        usage=ReadUsage.of(sum(sum(reply.tokens) for reply in replies)),
    )


def _normalise(vector: bytes) -> np.ndarray:
    """Return (d,) little-endian float32 of length 1; zeros have no direction and are an error."""
    values = np.frombuffer(vector, dtype="<f4").astype(np.float64)
    norm = np.linalg.norm(values)
    if not norm:  # the numbers of some adapter were too large for the base's norms
        raise GraftworkError("What was read of this request is a zero vector.", code="engine_fault")
    return (values / norm).astype("<f4")
