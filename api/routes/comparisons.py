"""Comparisons of methods: create, list, look, draw, cancel."""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal

from fastapi import Depends, Header, Query
from fastapi.responses import StreamingResponse

from api.deps import DatabaseDep, PageDep, SettingsDep, StoreDep, TenantDep
from api.keyed_route import keyed_router
from api.schemas.common import Listing, list_items
from api.schemas.comparisons import ComparisonCreate, ComparisonObject
from api.services.comparisons import create, read_plot
from models.tables import comparison
from models.tables.comparison import Comparison
from models.tables.comparison_table import assemble, assemble_all

router = keyed_router()

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
Against = Annotated[
    Literal["both", "parameters", "compute"], Query(description="What quality is drawn against.")
]


@router.post("/fine_tuning/comparisons")
def create_comparison(
    body: ComparisonCreate,
    *,
    database: DatabaseDep,
    tenant: TenantDep,
    settings: SettingsDep,
    store: StoreDep,
    idempotency_key: IdempotencyKey = None,
) -> ComparisonObject:
    """Train several methods on the same data at the same budget, and rank them."""
    with database.unit_of_work() as session:
        row = create(
            session,
            body,
            tenant=tenant,
            idempotency_key=idempotency_key,
            settings=settings,
            store=store,
        )
        return ComparisonObject.of(row, table=assemble(session, row))


@router.get("/fine_tuning/comparisons")
def list_comparisons(
    database: DatabaseDep, *, tenant: TenantDep, page: PageDep
) -> Listing[ComparisonObject]:
    """List comparisons, newest first."""
    with database.reading() as session:
        rows, has_more = comparison.list_page(session, tenant=tenant, page=page)
        tables = zip(rows, assemble_all(session, rows), strict=True)
        shown = [ComparisonObject.of(row, table=table) for row, table in tables]
        return list_items(shown, has_more=has_more)


@router.get("/fine_tuning/comparisons/{comparison_id}")
def retrieve_comparison(
    comparison_id: str, *, database: DatabaseDep, tenant: TenantDep
) -> ComparisonObject:
    """Show a comparison and its table as far as it goes."""
    with database.reading() as session:
        row = comparison.get(session, comparison_id, tenant=tenant)
        return ComparisonObject.of(row, table=assemble(session, row))


@router.post("/fine_tuning/comparisons/{comparison_id}/cancel")
def cancel_comparison(
    comparison_id: str, *, database: DatabaseDep, tenant: TenantDep
) -> ComparisonObject:
    """End a comparison and its jobs for good."""
    with database.unit_of_work() as session:
        row = comparison.cancel(session, comparison_id, tenant=tenant)
        return ComparisonObject.of(row, table=assemble(session, row))


def _find(comparison_id: str, database: DatabaseDep, tenant: TenantDep) -> Comparison:
    with database.reading() as session:
        return comparison.get(session, comparison_id, tenant=tenant)


FoundDep = Annotated[Comparison, Depends(_find)]


@router.get("/fine_tuning/comparisons/{comparison_id}/plot.svg", response_class=StreamingResponse)
def draw_svg(row: FoundDep, *, store: StoreDep, against: Against = "both") -> StreamingResponse:
    """Draw quality against trained parameters and training time."""
    return _answer(read_plot(store, row, name=f"{against}.svg"), media_type="image/svg+xml")


@router.get("/fine_tuning/comparisons/{comparison_id}/plot.png", response_class=StreamingResponse)
def draw_png(row: FoundDep, *, store: StoreDep, against: Against = "both") -> StreamingResponse:
    """Draw the same in pixels."""
    return _answer(read_plot(store, row, name=f"{against}.png"), media_type="image/png")


def _answer(pieces: Iterator[bytes], *, media_type: str) -> StreamingResponse:
    """Read the first piece now, so that missing bytes are an error and not an empty picture."""
    return StreamingResponse(chain([next(pieces, b"")], pieces), media_type=media_type)
