"""Use case: take in an adapter that was made elsewhere, once the engine says that it fits."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from api.errors import Reported
from api.schemas.catalog import ImportedModel, ImportReport
from api.schemas.jobs import Suffix
from api.services.archive import unpack
from api.services.catalog import adapter_card
from api.services.readiness import Parts
from api.services.upload import filename_of
from api.upload_form import PREFIX, UploadForm
from core.errors import GraftworkError, InvalidRequest
from core.ids import random_letters
from models.adapter_files import PEFT_CONFIG, PROVENANCE
from models.tables import adapter, checkpoint, job
from models.tables.adapter import Adapter
from models.tables.base import hold_writers
from models.tables.checkpoint import Checkpoint
from models.wire import InspectReply, InspectRequest

_suffix = TypeAdapter[str](Suffix)


class Arrival(NamedTuple):
    """An unpacked adapter: where it lies, what it says of itself, what was left aside."""

    folder: Path
    source: dict[str, Any]
    ignored: Sequence[str]
    suffix: str


async def import_adapter(form: UploadForm, *, tenant: str, parts: Parts) -> ImportedModel:
    """Store an uploaded adapter and make it callable, or leave nothing of it behind."""
    suffix = _read_suffix(form)
    with tempfile.TemporaryDirectory(dir=form.path.parent, prefix=PREFIX) as scratch:
        limit = parts.settings.limits.adapter_bytes
        arrival = await run_in_threadpool(_unpack, form, Path(scratch), limit=limit, suffix=suffix)
        digest = await run_in_threadpool(parts.store.put_tree, arrival.folder)
        published = False
        try:
            found = await parts.engine.inspect(InspectRequest(digest))
            report = _report(found, arrival, base=parts.settings.base)
            if report.problems:
                raise _mismatch(report)
            card = await run_in_threadpool(
                _publish, arrival, digest, report, tenant=tenant, parts=parts
            )
            published = True
        finally:
            if not published:
                await run_in_threadpool(_discard, digest, parts=parts)
    return card


def _read_suffix(form: UploadForm) -> str:
    if unknown := form.fields.keys() - {"suffix"}:
        name = min(unknown)
        raise InvalidRequest(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
    try:
        return _suffix.validate_python(form.fields.get("suffix", ""))
    except ValidationError as error:
        raise InvalidRequest(
            "Invalid value for 'suffix': at most 64 of letters, digits, '.', '_' and '-'.",
            code="invalid_value",
            param="suffix",
        ) from error


def _unpack(form: UploadForm, folder: Path, *, limit: int, suffix: str) -> Arrival:
    kept, ignored = unpack(form.path, folder, limit=limit)
    source: dict[str, Any] = {
        "filename": filename_of(form),
        "format": "graftwork" if PROVENANCE in kept else "peft",
    }
    if PEFT_CONFIG in kept:
        source["base_model"] = _base_model(folder / PEFT_CONFIG)
    return Arrival(folder, source, ignored, suffix)


def _base_model(path: Path) -> str | None:
    """Return what PEFT's configuration calls the base."""
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{path.name} is not JSON.", code="invalid_adapter", param="file"
        ) from error
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return ascii(name[:255])[1:-1] if isinstance(name, str) and name else None


def _report(found: InspectReply, arrival: Arrival, *, base: str) -> ImportReport:
    source = arrival.source
    name = source.get("base_model") if source["format"] == "peft" else None
    warnings = []
    if name is not None and name.rstrip("/").rpartition("/")[2].lower() != base.lower():
        warnings.append(
            f"The adapter says that it was made on {name!r}; this base is {base!r}. Names and "
            "dimensions of tensors are all that was compared."
        )
    return ImportReport(
        format=source["format"],
        method=found.method,
        parameters=found.parameters,
        matched=found.matched,
        missing=found.missing,
        unexpected=found.unexpected,
        mismatched=found.mismatched,
        problems=found.problems,
        warnings=warnings,
        ignored=list(arrival.ignored),
    )


def _mismatch(report: ImportReport) -> Reported:
    return Reported(
        f"This adapter cannot be served on this base: {report.problems[0]} `report` has the rest.",
        code="adapter_mismatch",
        param="file",
        report=report.model_dump(),
    )


def _publish(
    arrival: Arrival, digest: str, report: ImportReport, *, tenant: str, parts: Parts
) -> ImportedModel:
    name = adapter.name_of(
        base=parts.settings.base, tenant=tenant, suffix=arrival.suffix, letters=random_letters(8)
    )
    row = Adapter(
        name=name,
        tenant=tenant,
        base=parts.settings.base,
        method=report.method,
        digest=digest,
        bytes=sum(path.stat().st_size for path in arrival.folder.iterdir()),
        parameters=report.parameters,
        source=arrival.source,
        report=report.model_dump(mode="json"),
    )
    with parts.database.unit_of_work() as session:
        adapter.add(session, row)
        parts.store.keep_tree(digest, arrival.folder)
        return ImportedModel(**dict(adapter_card(row)), report=report)


def _discard(digest: str, *, parts: Parts) -> None:
    """Remove the stored files unless something else has the same ones."""
    with suppress(GraftworkError), parts.database.unit_of_work() as session:
        hold_writers(session, Adapter)
        hold_writers(session, Checkpoint)
        used = (
            adapter.is_used(session, digest)
            or checkpoint.is_used(session, digest)
            or job.is_pinned(session, digest)
        )
        if not used:
            parts.store.delete_tree(digest)
