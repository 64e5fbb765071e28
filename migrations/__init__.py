"""Alembic migrations: the only way the schema changes, and the way to say where it stands."""

from pathlib import Path

from alembic.command import upgrade
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration for `url`, wherever this package is installed."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrate(url: str) -> None:
    """Bring the database at `url` to the newest schema."""
    upgrade(alembic_config(url), "head")


def is_current(engine: Engine) -> bool:
    """Say whether the database is at the newest schema."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_heads()
    config = alembic_config(str(engine.url))
    return set(current) == set(ScriptDirectory.from_config(config).get_heads())
