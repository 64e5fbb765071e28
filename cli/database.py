"""What an operator does to the database directly: migrate it, look at it, add its first key."""

from typing import NamedTuple

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import InterfaceError, OperationalError

import migrations
from core.database import Database
from core.errors import Unavailable
from core.settings import Settings
from models.tables import api_key

FIRST_TENANT = "default"


class Revision(NamedTuple):
    """Where a database is, and where this version of the code wants it."""

    current: str | None
    head: str | None


def migrate(settings: Settings) -> str | None:
    """Upgrade the database to the newest schema and return its revision."""
    try:
        migrations.migrate(settings.database)
    except (OperationalError, InterfaceError) as error:
        raise Unavailable(f"The database cannot be reached: {error.orig}") from error
    return _head(settings)


def revision(settings: Settings, database: Database) -> Revision:
    """Read the schema's revision; raises SQLAlchemy's errors when the database is away."""
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return Revision(current, _head(settings))


def require_current(settings: Settings, database: Database) -> None:
    """Raise `Unavailable`, saying what to do, unless the database has this version's schema."""
    try:
        found = revision(settings, database)
    except (OperationalError, InterfaceError) as error:
        raise Unavailable(f"The database cannot be reached: {error.orig}") from error
    if found.current != found.head:
        raise Unavailable(
            f"The database is at revision {found.current}, not {found.head}: "
            "run `graftwork migrate`, or start `graftwork serve` on it once."
        )


def bootstrap(settings: Settings) -> bool:
    """Add the key that the operator gave, unless the database has keys; say whether it did."""
    if not settings.bootstrap_key:
        return False
    return _add_first(settings, secret=settings.bootstrap_key) is not None


def first_key(settings: Settings) -> str | None:
    """Make a key for a database that has none and return its secret; else None."""
    return _add_first(settings, secret=None)


def _add_first(settings: Settings, *, secret: str | None) -> str | None:
    database = Database(settings.database)
    try:
        with database.unit_of_work() as session:
            if api_key.count(session):
                return None
            _, shown = api_key.create(session, tenant=FIRST_TENANT, name="first", secret=secret)
            return shown
    finally:
        database.close()


def _head(settings: Settings) -> str | None:
    config = migrations.alembic_config(settings.database)
    return ScriptDirectory.from_config(config).get_current_head()
