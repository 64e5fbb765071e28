"""Use case: compare methods, each as an ordinary job, on equal terms."""

import json
import re
import secrets
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.schemas.comparisons import ComparisonCreate
from api.schemas.jobs import HYPERPARAMETERS, JobCreate
from api.services.catalog import find_target
from api.services.idempotency import Once
from api.services.submit import build_job, find_training_file
from core.errors import InvalidRequest, NotFound
from core.ids import new_id
from core.settings import Settings
from core.store import Store
from models.nn.methods import METHODS, parse_method, parse_posted
from models.nn.methods.base import Method
from models.tables import comparison
from models.tables.comparison import Comparison
from models.tables.job import Job

LONGEST_LABEL = 60
LONGEST_SUFFIX = 64


def create(
    session: Session,
    body: ComparisonCreate,
    *,
    tenant: str,
    idempotency_key: str | None,
    settings: Settings,
    store: Store,
) -> Comparison:
    """Add a comparison and its jobs, or return the one that an earlier request made."""
    find = partial(comparison.find_by_idempotency_key, session, tenant=tenant)
    once = Once(session, body, key=idempotency_key, find=find)
    if earlier := once.find_earlier():
        return earlier
    row = _build(session, body, tenant=tenant, settings=settings, store=store)
    once.mark(row)
    jobs = list(_build_jobs(session, body, row=row, settings=settings))
    row.entries = [{"label": label, "method": one.method, "job": one.id} for label, one in jobs]
    return once.add(lambda: comparison.add(session, row, jobs=[one for _, one in jobs]))


def read_plot(store: Store, row: Comparison, *, name: str) -> Iterator[bytes]:
    """Return the bytes of a plot."""
    digest = (row.plots or {}).get(name)
    if digest is None:
        raise NotFound(
            f"The comparison is {row.state}; its plots are there once it has succeeded.",
            code="plot_not_ready",
        )
    return store.stream(digest)


def label_of(method: Method) -> str:
    """Return a method's kind and every value that is not the default's."""
    words = [method.kind]
    for name, field in type(method).model_fields.items():
        value = getattr(method, name)
        if name != "kind" and value != field.get_default(call_default_factory=True):
            words.append(_word(name, value))
    label = " ".join(words)
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def number_labels(labels: list[str]) -> list[str]:
    """Return the labels with a number behind each that came before."""
    seen: Counter[str] = Counter()
    distinct = []
    for label in labels:
        seen[label] += 1
        distinct.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return distinct


def _word(name: str, value: Any) -> str:
    if value is True:
        return name
    if value is False:
        return f"no {name}"
    if isinstance(value, float):
        return f"{name}={value:g}"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return f"{name}={'+'.join(map(str, value))}"
    return f"{name}={value}"


def _build(
    session: Session, body: ComparisonCreate, *, tenant: str, settings: Settings, store: Store
) -> Comparison:
    target = find_target(session, body.model or settings.base, tenant=tenant, settings=settings)
    if target.adapter is not None:
        raise InvalidRequest(
            f"{target.name!r} is an adapter; methods are compared on the base they start from.",
            code="base_required",
            param="model",
        )
    validation = find_training_file(
        session, body.validation_file, tenant=tenant, param="validation_file"
    )
    _refuse_bare_text(store, validation.digest)
    return Comparison(
        id=new_id("ftcmp"),
        tenant=tenant,
        base=target.base,
        training_file=body.training_file,
        validation_file=validation.id,
        validation_digest=validation.digest,
        budget=body.budget.model_dump(exclude_none=True),
        training=body.training.model_dump(exclude_unset=True) if body.training else {},
        metric=body.metric,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        suffix=body.suffix or None,
        labels=body.metadata or None,
        max_validation_rows=body.max_validation_rows,
    )


def _build_jobs(
    session: Session, body: ComparisonCreate, *, row: Comparison, settings: Settings
) -> Iterator[tuple[str, Job]]:
    """Yield each method's label and its job: equal but for the method."""
    methods = _read_methods(body)
    labels = number_labels([label_of(method) for method in methods])
    options = {**row.training}
    hyperparameters = {name: options.pop(name) for name in HYPERPARAMETERS if name in options}
    options |= {f"max_{unit}": amount for unit, amount in row.budget.items()}
    for number, (label, method) in enumerate(zip(labels, methods, strict=True)):
        job_body = JobCreate(
            model=row.base,
            training_file=body.training_file,
            validation_file=body.validation_file,
            hyperparameters=hyperparameters or None,
            training=options,
            suffix=_suffix(row.suffix, label),
            seed=row.seed,
            metadata=body.metadata,
            peft=method,
        )
        try:
            made = build_job(session, job_body, tenant=row.tenant, settings=settings)
        except InvalidRequest as error:
            raise _placed(error, number) from error
        made.request_digest = row.request_digest
        yield label, made


def _read_methods(body: ComparisonCreate) -> list[Method]:
    if body.methods == "all":
        return [parse_method({"type": kind}) for kind in METHODS]
    methods = []
    for number, block in enumerate(body.methods):
        try:
            methods.append(parse_posted(block))
        except InvalidRequest as error:
            raise _placed(error, number) from error
    return methods


def _placed(error: InvalidRequest, number: int) -> InvalidRequest:
    """Name the block of the list that an error is about."""
    if not (error.param or "").startswith("peft"):
        return error
    place = f"methods.{number}"
    return InvalidRequest(
        error.message.replace("peft.", f"{place}."),
        code=error.code,
        param=(error.param or "").replace("peft", place, 1),
    )


def _suffix(asked: str | None, label: str) -> str:
    """Return a part of the model's name that says which method it is."""
    words = re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-")
    return (f"{asked}-{words}" if asked else words)[:LONGEST_SUFFIX]


def _refuse_bare_text(store: Store, digest: str) -> None:
    """Refuse rows without an answer before anything is trained; the rest is the worker's to see."""
    begin = next(store.stream(digest), b"").removeprefix(BOM_UTF8)
    line, _, _ = begin.lstrip().partition(b"\n")
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(first, dict) and "text" in first and "prompt" not in first:
        raise InvalidRequest(
            "Rows of plain text have no answer to measure by; validate on chats, or on prompts "
            "and completions.",
            code="no_answers",
            param="validation_file",
        )
