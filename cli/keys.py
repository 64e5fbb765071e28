"""`graftwork keys`: API keys, straight in the database. For operators, not for clients."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from cli.console import Commands, err, out
from cli.environment import DataDir, configure
from core.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Create, list and revoke API keys.")


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Who the key speaks for.")] = "default",
    name: Annotated[str, typer.Option(help="What you will know the key by.")] = "key",
    data_dir: DataDir = None,
) -> None:
    """Create a key; its secret is shown now and never again."""
    with _session(data_dir) as session:
        from models.tables import api_key

        row, secret = api_key.create(session, tenant=tenant, name=name)
        key_id = row.id
    err.print(f"{key_id} for tenant {tenant}; the secret is shown only now:")
    out.print(secret, markup=False)


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List all keys, oldest first."""
    table = Table(Column("id", no_wrap=True), box=None, pad_edge=False)  # whole, to be revoked by
    for name in ("tenant", "name", "ends in", "created", "state"):
        table.add_column(name, overflow="fold")
    with _session(data_dir) as session:
        from models.tables import api_key

        for row in api_key.list_all(session):
            created = datetime.fromtimestamp(row.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            state = "open" if row.revoked_at is None else "revoked"
            cells = row.id, row.tenant, row.name, row.hint, created, state
            table.add_row(*map(Text, cells))
    out.print(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Close a key for good."""
    with _session(data_dir) as session:
        from models.tables import api_key

        api_key.revoke(session, key_id)
    out.print(f"{key_id} is revoked.")


@contextmanager
def _session(data_dir: DataDir) -> "Iterator[Session]":
    """Open a unit of work on a database that has its tables."""
    settings = configure(data_dir=data_dir)
    folder = settings.data_folder
    if settings.database_url is None and not folder.is_dir():
        raise NotFound(
            f"There is no data directory {folder}; `graftwork serve --data-dir {folder}` makes it."
        )
    from cli.database import require_current
    from core.database import Database

    database = Database(settings.database)
    try:
        require_current(settings, database)
        with database.unit_of_work() as session:
            yield session
    finally:
        database.close()
