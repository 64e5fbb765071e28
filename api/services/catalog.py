"""Names that can be called: the base, a tenant's adapters and their checkpoints."""

from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from api.schemas.catalog import CardDetails, ModelCard
from core.bases import MANIFEST
from core.errors import InvalidRequest, NotFound
from core.settings import Settings
from models.nn.methods import parse_method
from models.tables import adapter, checkpoint, job
from models.tables.adapter import Adapter
from models.tables.checkpoint import Checkpoint
from models.wire import AdapterRef

OWNER = "graftwork"


class Target(NamedTuple):
    """What a name stands for: the base alone, or the base with these bytes grafted on."""

    name: str
    base: str
    tenant: str
    adapter: AdapterRef | None = None
    method: dict[str, Any] | None = None

    @property
    def class_labels(self) -> tuple[str, ...] | None:
        """A classifier's labels, as far as its row knows them; None for what generates text."""
        return parse_method(self.method).class_labels if self.method else None


def find_target(session: Session, name: str, *, tenant: str, settings: Settings) -> Target:
    """Return what a model name stands for, or raise the error that the caller should see."""
    if name == settings.base:
        return Target(name, base=name, tenant=tenant)
    target = _find_tuned(session, name, tenant=tenant)
    if target.base != settings.base:
        raise InvalidRequest(
            f"{name!r} was tuned on {target.base!r}; this installation serves {settings.base!r}.",
            code="base_not_served",
            param="model",
        )
    return target


def list_cards(session: Session, *, tenant: str, settings: Settings) -> list[ModelCard]:
    """Return the base and every adapter of a tenant."""
    rows = adapter.list_all(session, tenant=tenant)
    return [_base_card(settings), *(adapter_card(row) for row in rows)]


def find_card(session: Session, name: str, *, tenant: str, settings: Settings) -> ModelCard:
    """Return the card of a base, an adapter or a checkpoint."""
    if name == settings.base:
        return _base_card(settings)
    row = find_row(session, name, tenant=tenant)
    if isinstance(row, Adapter):
        return adapter_card(row)
    return _checkpoint_card(session, row)


def delete(session: Session, name: str, *, tenant: str, settings: Settings) -> str | None:
    """Delete an adapter or a checkpoint; return its digest if nothing else has the same bytes."""
    if name == settings.base:
        raise InvalidRequest(
            "The base model cannot be deleted.", code="base_not_deletable", param="model"
        )
    if saved := checkpoint.find(session, name, tenant=tenant):
        checkpoint.delete(session, saved)
        digest = saved.digest
    else:
        digest = adapter.delete(session, name, tenant=tenant).digest
    used = adapter.is_used(session, digest) or checkpoint.is_used(session, digest)
    return None if used else digest


def find_row(session: Session, name: str, *, tenant: str) -> Adapter | Checkpoint:
    """Return a tenant's adapter or checkpoint by name, or raise `NotFound`."""
    row = adapter.find(session, name, tenant=tenant) or checkpoint.find(
        session, name, tenant=tenant
    )
    if row is None:
        raise NotFound(f"The model {name!r} does not exist.", code="model_not_found", param="model")
    return row


def _find_tuned(session: Session, name: str, *, tenant: str) -> Target:
    row = find_row(session, name, tenant=tenant)
    made = row if isinstance(row, Adapter) else job.get(session, row.job_id, tenant=tenant)
    return Target(name, made.base, tenant, AdapterRef(name, row.digest), made.method)


def _base_card(settings: Settings) -> ModelCard:
    manifest = settings.base_folder / MANIFEST
    return ModelCard(
        id=settings.base,
        created=int(manifest.stat().st_mtime) if manifest.is_file() else 0,
        owned_by=OWNER,
        graftwork=CardDetails(base=settings.base, kind="base"),
    )


def adapter_card(row: Adapter) -> ModelCard:
    """Return the card of an adapter."""
    return ModelCard(
        id=row.name,
        created=int(row.created_at),
        owned_by=row.tenant,
        graftwork=CardDetails(
            base=row.base,
            kind="adapter",
            method=row.method,
            parameters=row.parameters,
            digest=row.digest,
            bytes=row.bytes,
            job=row.job_id,
            source=row.source,
        ),
    )


def _checkpoint_card(session: Session, row: Checkpoint) -> ModelCard:
    made = job.get(session, row.job_id, tenant=row.tenant)
    return ModelCard(
        id=row.name,
        created=int(row.created_at),
        owned_by=row.tenant,
        graftwork=CardDetails(
            base=made.base,
            kind="checkpoint",
            method=made.method,
            parameters=made.trained_parameters,
            digest=row.digest,
            job=row.job_id,
            step=row.step,
        ),
    )
