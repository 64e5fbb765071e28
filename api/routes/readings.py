"""Embeddings and classifications: texts are read and nothing is written."""

from api.caller import CallerDep
from api.keyed_route import keyed_router
from api.schemas.classifications import ClassificationList, ClassificationRequest
from api.schemas.embeddings import EmbeddingList, EmbeddingRequest
from api.services.classifications import classify
from api.services.embeddings import embed

router = keyed_router()


@router.post("/embeddings")
async def create_embeddings(body: EmbeddingRequest, caller: CallerDep) -> EmbeddingList:
    """Turn texts into vectors, by the base or under a generative adapter."""
    target = await caller.find(body.model)
    return await caller.wait(embed(caller.engine, body, target, hidden=caller.hidden))


@router.post("/classifications")
async def create_classifications(
    body: ClassificationRequest, caller: CallerDep
) -> ClassificationList:
    """Label texts or conversations."""
    target = await caller.find(body.model)
    return await caller.wait(classify(caller.engine, body, target))
