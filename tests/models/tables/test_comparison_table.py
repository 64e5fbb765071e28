"""Tables of comparisons that have not ended, as they are listed."""

from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from core.database import Database
from models.tables import comparison_table
from models.tables.adapter import Adapter
from models.tables.base import database_now
from models.tables.comparison import Comparison
from models.tables.job import Job
from tests.factories import make_comparison, make_job


def compare(session: Session, *, jobs: int) -> Comparison:
    """Add a comparison whose jobs have all made an adapter."""
    row = make_comparison(session)
    made = [trained(session, row) for _ in range(jobs)]
    row.entries = [{"label": job.id, "method": job.method, "job": job.id} for job in made]
    session.flush()
    return row


def trained(session: Session, row: Comparison) -> Job:
    job = make_job(session, comparison_id=row.id, state="succeeded")
    job.fine_tuned_model = f"ft:tiny:{job.id}"
    session.add(
        Adapter(
            name=job.fine_tuned_model,
            tenant=job.tenant,
            base="tiny",
            method=job.method,
            digest="0" * 64,
            bytes=job.number,
            parameters=1,
            job_id=job.id,
        )
    )
    return job


def test_the_jobs_and_adapters_of_a_page_are_one_query(database: Database) -> None:
    with database.unit_of_work() as session:
        rows = [compare(session, jobs=count) for count in (2, 0, 3)]
        numbers = {job.id: job.number for job in session.query(Job)}
        gone = session.query(Adapter).filter_by(name=f"ft:tiny:{rows[0].entries[0]['job']}").one()
        gone.deleted_at = database_now()
        numbers[gone.job_id] = 0
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with database.reading() as session:
        event.listen(database.engine, "before_cursor_execute", note)
        tables = comparison_table.assemble_all(session, rows)
        event.remove(database.engine, "before_cursor_execute", note)
    assert len([one for one in statements if one.startswith("SELECT")]) == 1
    for row, table in zip(rows, tables, strict=True):
        assert [one.job for one in table.rows[1:]] == [entry["job"] for entry in row.entries]
        assert all(one.artifact_bytes == numbers[one.job] for one in table.rows[1:])
