"""Use case: label texts, by a classifier or by what a generative model would rather answer."""

from api.engine_client import EngineClient
from api.schemas.classifications import (
    Classification,
    ClassificationList,
    ClassificationRequest,
    Score,
)
from api.schemas.embeddings import ReadUsage
from api.services.catalog import Target
from api.services.reading import in_batches, to_inputs
from models.wire import ClassifyReply, ClassifyRequest, Input

BATCH = 32
SCORINGS = 512
"""So many pairs of input and label a batch at most: each pair is a text of its own to the base."""


async def classify(
    engine: EngineClient, body: ClassificationRequest, target: Target
) -> ClassificationList:
    """Return the labels of all inputs; the engine says whether labels suit the model."""

    async def ask(inputs: list[Input]) -> ClassifyReply:
        return await engine.classify(
            ClassifyRequest(
                inputs=inputs, adapter=target.adapter, tenant=target.tenant, labels=body.labels
            )
        )

    size = min(BATCH, max(1, SCORINGS // len(body.labels))) if body.labels else BATCH
    replies = await in_batches(to_inputs(body.inputs), size=size, ask=ask)
    rows = [
        _rank(reply.labels, scores, most=body.top_k) for reply in replies for scores in reply.scores
    ]
    return ClassificationList(
        data=[
            Classification(index=index, label=row[0].label, score=row[0].score, scores=row)
            for index, row in enumerate(rows)
        ],
        model=body.model,
        usage=ReadUsage.of(sum(sum(reply.tokens) for reply in replies)),
    )


def _rank(labels: list[str], scores: list[float], *, most: int | None) -> list[Score]:
    """Return the labels, likeliest first; equal ones keep the order in which they were given."""
    pairs = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
    return [Score(label=label, score=score) for label, score in pairs[:most]]
