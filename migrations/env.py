"""Alembic's entry: the database of the settings, the tables of `models.tables`."""

from alembic import context

from core.database import open_database
from core.settings import get_settings
from models.tables import Base

CHECK = "PRAGMA foreign_key_check"


def run() -> None:
    """Run the migrations in one transaction on the database in force."""
    engine = open_database(context.config.attributes.get("url") or get_settings().database)
    with engine.connect() as connection:
        rebuilds = connection.dialect.name == "sqlite"
        if rebuilds:  # a table is changed by making it again, under rows that refer to it
            connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=rebuilds,
            compare_type=True,
            transactional_ddl=True,  # of SQLite Alembic believes the opposite
        )
        with context.begin_transaction():
            context.run_migrations()
            if rebuilds and (lost := connection.exec_driver_sql(CHECK).all()):
                raise RuntimeError(f"The migration would leave rows without their parents: {lost}.")
    engine.dispose()


run()
