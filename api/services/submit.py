"""Use case: ask for a tuning job, once, however often the request arrives."""

import json
import secrets
from functools import partial

from sqlalchemy.orm import Session

from api.schemas.jobs import DEFAULT_METHOD, JobCreate
from api.services.bases import find_shape
from api.services.catalog import Target, find_target
from api.services.idempotency import Once
from core.errors import InvalidRequest
from core.ids import new_id
from core.settings import Settings
from models.loop_request import resolve
from models.nn.methods import decided_fields, parse_method
from models.nn.methods.base import Method
from models.tables import file, job
from models.tables.file import File
from models.tables.job import Job

PURPOSE = "fine-tune"


def submit(
    session: Session,
    body: JobCreate,
    *,
    tenant: str,
    idempotency_key: str | None,
    settings: Settings,
) -> Job:
    """Add a job, or return the one that an earlier request with the same key added."""
    find = partial(job.find_by_idempotency_key, session, tenant=tenant)
    once = Once(session, body, key=idempotency_key, find=find)
    if earlier := once.find_earlier():
        return earlier
    row = build_job(session, body, tenant=tenant, settings=settings)
    once.mark(row)
    return once.add(lambda: job.add(session, row))


def build_job(session: Session, body: JobCreate, *, tenant: str, settings: Settings) -> Job:
    """Return the job that a request describes, checked against base, parent and files."""
    target = find_target(session, body.model, tenant=tenant, settings=settings)
    method = _choose_method(body, target, settings=settings)
    resolve(body.loop(), method=method, rows=1)  # refuses what no number of rows would mend
    training = find_training_file(session, body.training_file, tenant=tenant, param="training_file")
    validation = (
        find_training_file(session, body.validation_file, tenant=tenant, param="validation_file")
        if body.validation_file
        else None
    )
    return Job(
        id=new_id("ftjob"),
        tenant=tenant,
        model=body.model,
        base=target.base,
        parent_digest=target.adapter.digest if target.adapter else None,
        training_file=training.id,
        training_digest=training.digest,
        validation_file=validation.id if validation else None,
        validation_digest=validation.digest if validation else None,
        suffix=body.suffix or None,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        labels=body.metadata or None,
        method=method.model_dump(mode="json", by_alias=True),
        loop=body.loop().model_dump(mode="json"),
    )


def find_training_file(session: Session, file_id: str, *, tenant: str, param: str) -> File:
    """Return a file that was uploaded to train or measure on."""
    row = file.get(session, file_id, tenant=tenant, param=param)
    if row.purpose != PURPOSE:
        raise InvalidRequest(
            f"{file_id} was uploaded for {row.purpose!r}; upload it with the purpose {PURPOSE!r}.",
            code="invalid_file_purpose",
            param=param,
        )
    return row


def _choose_method(body: JobCreate, target: Target, *, settings: Settings) -> Method:
    """Return the method, checked against the base's places and against the parent's tensors.

    What `peft` leaves out is as it was for the parent; what only data decide, they decide anew.
    """
    shape = find_shape(settings)
    parent = parse_method(target.method) if target.method else None
    default = parse_method({"type": parent.kind if parent else DEFAULT_METHOD})
    method = body.peft or default
    if parent is not None and method.kind == parent.kind:
        method = _fill(method, parent)
    _refuse_long_starts(method, settings=settings)
    trained = method.trained(shape) if shape else None
    if parent is None:
        return method
    if method.kind != parent.kind or (shape and trained != parent.trained(shape)):
        raise InvalidRequest(
            f"{target.name!r} was tuned by {json.dumps(target.method)}; going on from it needs the "
            "same tensors. Leave `peft` out to take its method.",
            code="incompatible_parent",
            param="peft",
        )
    _refuse_other_labels(method, parent)
    return method


def _refuse_long_starts(method: Method, *, settings: Settings) -> None:
    """Raise for rows before every sequence that leave none for the sequence where it is served."""
    context = settings.engine.context
    if method.rows_before > context - 2:  # a token to read and one to write
        raise InvalidRequest(
            f"{method.rows_before} rows before every sequence leave no room in the engine's "
            f"context of {context} tokens.",
            code="context_length_exceeded",
            param="peft",
        )


def _refuse_other_labels(method: Method, parent: Method) -> None:
    """Raise for labels that are not the parent's: its outputs mean those, in their order."""
    if parent.class_labels and set(method.class_labels or ()) != set(parent.class_labels):
        raise InvalidRequest(
            "A classifier that goes on keeps its labels. Leave `labels` out, or train the new ones "
            "from the base.",
            code="incompatible_parent",
            param="peft.labels",
        )


def _fill(method: Method, parent: Method) -> Method:
    """Return a method with the values that nobody gave taken from its parent."""
    given = method.model_dump(include=method.model_fields_set)
    taken = parent.model_dump(exclude=decided_fields(type(parent)))
    return parse_method({**taken, **given})
