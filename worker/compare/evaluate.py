"""One claimed comparison from its jobs' ends to the table and the pictures.

What is found of a model is written down before the next one is asked, so a worker that is killed
costs one model's answers. Everything written carries the comparison's fence.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import structlog
from sqlalchemy.orm import Session

from core.database import Database
from core.errors import GraftworkError, StaleFence, StorageFull, Unavailable
from core.ids import new_id
from core.settings import Settings
from core.store import Store
from models.comparison import BASE_LABEL, ComparisonResult, Evaluated
from models.tables import adapter, comparison_claims, comparison_table
from models.tables.comparison import Comparison
from models.tables.file import File
from models.wire import AdapterRef
from worker.compare.ask import Asked, overhead
from worker.compare.engine_client import EngineClient, EngineRefused
from worker.compare.metrics import measure
from worker.compare.questions import Questions, read_questions
from worker.lease import Leases

log = structlog.get_logger(__name__)


class Stopping(Exception):
    """The worker ends; another one goes on."""


class Evaluation:
    """Asks base and adapters of a comparison; `run` returns when it is no longer ours."""

    def __init__(
        self,
        row: Comparison,
        *,
        settings: Settings,
        database: Database,
        store: Store,
        stopping: Event,
    ) -> None:
        self._row = row
        self._settings = settings
        self._database = database
        self._store = store
        self._stopping = stopping
        self._leases = Leases(
            database=database,
            seconds=settings.worker.lease_seconds,
            renew=comparison_claims.renew,
        )
        self._lease = self._leases.hold(row)

    def run(self) -> None:
        """Evaluate, or hand back; never raises for anything that a comparison can meet."""
        structlog.contextvars.bind_contextvars(comparison=self._row.id, fence=self._row.fence)
        try:
            with self._leases:
                self._evaluate_or_explain()
        except StaleFence:
            log.info("the comparison is no longer ours")
        except (Unavailable, StorageFull) as error:
            log.warning("gave the comparison up; its lease will end", reason=error.code)
        finally:
            structlog.contextvars.unbind_contextvars("comparison", "fence")

    def _evaluate_or_explain(self) -> None:
        """Evaluate; end the comparison for a reason that no second try would change."""
        try:
            if self._row.attempts > self._settings.worker.max_attempts:
                raise GraftworkError(
                    "The evaluation failed again and again. Ask the server's operator.",
                    code="too_many_attempts",
                )
            self._evaluate()
        except (StaleFence, Unavailable):
            raise
        except Stopping:
            with self._database.unit_of_work() as session:
                comparison_claims.hand_back(session, self._row)
        except (StorageFull, OSError) as error:
            log.warning("the disk failed; tried again when the lease is over", error=str(error))
        except GraftworkError as error:
            log.warning("the comparison failed", code=error.code, reason=error.message)
            self._fail(error)
        except Exception:
            log.exception("a bug of the evaluation; it is tried again when its lease is over")

    def _evaluate(self) -> None:
        folder = self._settings.work_folder / f"{self._row.id}-{self._row.fence}"
        try:
            questions = self._read_questions(folder)
            self._set(measured_by=questions.metric)
            with EngineClient(self._settings.engine_address, check=self._check) as engine:
                base = Asked(engine, questions, adapter=None)
                self._ask_all(engine, base, questions, scratch=folder / "answers.jsonl")
            self._publish(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _read_questions(self, folder: Path) -> Questions:
        path = self._store.fetch_file(self._row.validation_digest, folder / "validation.jsonl")
        return read_questions(
            path,
            metric=self._row.metric,
            most=self._row.max_validation_rows,
            seed=self._row.seed,
        )

    def _ask_all(
        self, engine: EngineClient, base: Asked, questions: Questions, *, scratch: Path
    ) -> None:
        """Ask every model that has not been asked, one after the other."""
        for label, reference in self._find_models():
            answers: list[str] = []
            try:
                if reference is None and label != BASE_LABEL:
                    raise EngineRefused("Its adapter was deleted before it was asked.")
                model = Asked(engine, questions, adapter=reference) if reference else base
                answers = model.answers()
                found = Evaluated(
                    quality=measure(
                        questions.metric,
                        answers=answers,
                        references=[one.references for one in questions.items],
                        seed=self._row.seed,
                    ),
                    serving_overhead=overhead(model, base=base) if reference else 1.0,
                )
            except EngineRefused as error:
                found = Evaluated(error=error.message)
            self._keep(label, found, answers=answers, questions=questions, scratch=scratch)

    def _find_models(self) -> list[tuple[str, AdapterRef | None]]:
        """Return the label and the adapter of each model that has not been asked yet."""
        models: list[tuple[str, AdapterRef | None]] = []
        with self._database.reading() as session:
            for row in self._table(session).rows:
                if row.status == "evaluating":
                    made = adapter.find(session, row.model or "", tenant=self._row.tenant)
                    models.append((row.label, AdapterRef(made.name, made.digest) if made else None))
        return models

    def _keep(
        self,
        label: str,
        found: Evaluated,
        *,
        answers: Sequence[str],
        questions: Questions,
        scratch: Path,
    ) -> None:
        """Write down one model's row, and beside it what it answered."""
        file = self._store_answers(answers, questions, scratch=scratch) if answers else None
        if file is not None:
            found = msgspec.structs.replace(found, answers=file.id)
        with self._database.unit_of_work() as session:
            if file is not None:
                session.add(file)
                session.flush()
                self._store.keep_file(file.digest, scratch)
            measured = comparison_claims.keep(session, self._row, label, found=found)
        self._row.measured = measured
        log.info("asked", label=label, quality=found.quality and found.quality.value)

    def _store_answers(
        self, answers: Sequence[str], questions: Questions, *, scratch: Path
    ) -> File:
        with scratch.open("wb") as stream:
            for answer, question in zip(answers, questions.items, strict=True):
                line = {**question._asdict(), "answer": answer}
                stream.write(msgspec.json.encode(line) + b"\n")
        return File(
            id=new_id("file"),
            tenant=self._row.tenant,
            filename=f"answers-{len(self._row.measured)}.jsonl",
            purpose="fine-tune-results",
            bytes=scratch.stat().st_size,
            digest=self._store.put_file(scratch),
        )

    def _publish(self, folder: Path) -> None:
        """End with the table and the plots, or with the reason why there is nothing to show."""
        from worker.compare.plot import draw_all

        with self._database.reading() as session:
            result = self._table(session)
        if not any(row.job and row.quality for row in result.rows):
            reasons = "; ".join(f"{row.label}: {row.error}" for row in result.rows if row.error)
            raise GraftworkError(f"No method gave a result. {reasons}", code="no_results")
        plots = {
            path.name: self._store.put_file(path) for path in draw_all(result, folder / "plots")
        }
        with self._database.unit_of_work() as session:
            comparison_claims.finish(
                session,
                self._row,
                state="succeeded",
                result=msgspec.to_builtins(result),
                plots=plots,
            )

    def _fail(self, error: GraftworkError) -> None:
        with self._database.unit_of_work() as session:
            comparison_claims.fail(session, self._row, code=error.code, message=error.message)

    def _table(self, session: Session) -> ComparisonResult:
        return comparison_table.assemble(session, self._row)

    def _set(self, **values: Any) -> None:
        with self._database.unit_of_work() as session:
            comparison_claims.update_owned(session, self._row, **values)
        for name, value in values.items():
            setattr(self._row, name, value)

    def _check(self) -> None:
        """Raise when this worker has to let go."""
        if self._lease.lost.is_set():
            raise StaleFence("The lease was lost.")
        if self._stopping.is_set():
            raise Stopping
