"""Alembic's entry: the database of the settings, the tables of `models.tables`."""

from alembic import context

from core.database import open_database
from core.settings import get_settings
from models.tables import Base


def run() -> None:
    """Run the migrations in one transaction on the database in force."""
    engine = open_database(context.config.attributes.get("url") or get_settings().database)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
