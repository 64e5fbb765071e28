"""What a trainer says, written to the database and the store; publishing is one transaction."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import singledispatchmethod
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from core.database import Database
from core.errors import DatabaseFull, StorageFull, Unavailable
from core.ids import new_id
from core.store import Store
from models.spec import (
    AnyTrainerMessage,
    CheckpointSaved,
    Failed,
    Metrics,
    Started,
    Stopped,
    Succeeded,
    Validated,
)
from models.tables import adapter, checkpoint, claims, event, job
from models.tables.adapter import Adapter
from models.tables.base import database_now
from models.tables.checkpoint import Checkpoint
from models.tables.file import File
from models.tables.job import Job
from worker.unused import remove_file, remove_resume, remove_tree

log = structlog.get_logger(__name__)


def model_name(row: Job) -> str:
    """Return the name that the job's result will have, the same at every try."""
    return adapter.name_of(
        base=row.base, tenant=row.tenant, suffix=row.suffix or "", letters=row.id[-8:]
    )


class Recorder:
    """Writes the messages of one claim of one job, each in one transaction under its fence."""

    def __init__(self, row: Job, *, database: Database, store: Store) -> None:
        self._row = row
        self._database = database
        self._store = store
        self._recorded_step = row.step
        self.may_have_told = False
        """Whether the message may have been written down before, and only the answer was lost."""
        self._told: set[tuple[int, frozenset[str]]] | None = None
        self._unsaved = False
        self._resume_digest = row.resume_digest
        self._trained_parameters = 0
        self._undo = ExitStack()
        """What takes back the bytes of a message that is not written down yet."""

    def take_back(self) -> None:
        """Remove what was stored for a message that nobody will write down; no row needs it."""
        with suppress(Unavailable):
            self._undo.close()

    @singledispatchmethod
    def record(self, message: AnyTrainerMessage) -> None:
        """Write one message down; `StaleFence` when the job belongs to somebody else."""
        raise TypeError(message)

    @record.register
    def _(self, message: Validated) -> None:
        """Tell it once: every try finds the same."""
        with self._database.unit_of_work() as session:
            known = job.get(session, self._row.id, tenant=self._row.tenant).report or {}
            report = {**known, **message.report}
            claims.update_owned(session, self._row, report=report)
            if report != known:
                event.add(session, self._row.id, message="Data tokenised.", data=message.report)

    @record.register
    def _(self, message: Started) -> None:
        self._trained_parameters = message.trained_parameters
        said = (
            f"Training goes on from step {message.resumed_step}."
            if message.resumed_step
            else "Training started."
        )
        with self._database.unit_of_work() as session:
            claims.update_owned(
                session,
                self._row,
                total_steps=message.total_steps,
                trained_parameters=message.trained_parameters,
            )
            # A claim before has told how it ended since.
            told = self.may_have_told and event.is_last(session, self._row.id, message=said)
            if not told:
                event.add(session, self._row.id, message=said)

    @record.register
    def _(self, message: Metrics) -> None:
        """Tell everything once: what is computed again after a resume is equal."""
        with self._database.unit_of_work() as session:
            claims.update_owned(
                session,
                self._row,
                step=max(message.step, self._recorded_step),
                trained_tokens=message.trained_tokens,
                tokens_per_second=message.tokens_per_second,
                estimated_finish=database_now() + message.eta_seconds,
            )
            if not self._is_told(session, message):
                event.add(
                    session,
                    self._row.id,
                    type="metrics",
                    message=f"Step {message.step}: "
                    + ", ".join(f"{name}={value:.4g}" for name, value in message.values.items()),
                    data={"step": message.step, **message.values},
                )

    @record.register
    def _(self, message: CheckpointSaved) -> None:
        """Move the pointer to the new checkpoint, then drop the bytes of the one before."""
        shown = message.kind == "epoch"
        with self._storing() as undo:
            try:
                resume = self._store_resume(message.resume_folder, undo=undo)
            except StorageFull:
                if shown:
                    raise
                log.warning("no room for a resume checkpoint", step=message.step)
                shutil.rmtree(message.resume_folder, ignore_errors=True)
                self._unsaved = True
                return
            self._unsaved = False
            digest = self._store_tree(Path(message.adapter_folder), undo=undo) if shown else ""
            with self._database.unit_of_work() as session:
                claims.update_owned(session, self._row, resume_digest=resume)
                if shown and checkpoint.find_step(session, self._row.id, step=message.step) is None:
                    self._show_checkpoint(session, message, digest=digest)
                    session.flush()
                    self._store.keep_tree(digest, Path(message.adapter_folder))
        self._replace_resume(resume)
        if message.resume_folder:
            shutil.rmtree(message.resume_folder, ignore_errors=True)
        if shown and not message.over:
            shutil.rmtree(message.adapter_folder, ignore_errors=True)

    @record.register
    def _(self, message: Succeeded) -> None:
        """Publish: adapter, result file, state and event become visible together or not at all.

        The resume checkpoint is left to the collector, as that of every job that ends.
        """
        with self._storing() as undo:
            results = self._store_results(Path(message.results_file), undo=undo)
            made = self._store_adapter(message, undo=undo)
            with self._database.unit_of_work() as session:
                claims.finish(
                    session,
                    self._row,
                    state="succeeded",
                    fine_tuned_model=made.name,
                    method=made.method,
                    result_file=results.id,
                    step=message.step,
                    trained_tokens=message.trained_tokens,
                    metrics=message.metrics,
                    usage=message.usage,
                )
                session.add_all([results, made])
                session.flush()
                self._store.keep_file(results.digest, Path(message.results_file))
                self._store.keep_tree(made.digest, Path(message.adapter_folder))
                said = f"New fine-tuned model created: {made.name}"
                event.add(session, self._row.id, message=said)
                event.add(session, self._row.id, message="The job has successfully completed.")

    @record.register
    def _(self, message: Stopped) -> None:
        with self._database.unit_of_work() as session:
            claims.hand_back(session, self._row, step=None if self._unsaved else message.step)

    @record.register
    def _(self, message: Failed) -> None:
        with self._database.unit_of_work() as session:
            claims.fail(
                session,
                self._row,
                code=message.code,
                message=message.message,
                param=message.param,
                problems=message.problems,
            )

    def _is_told(self, session: Session, message: Metrics) -> bool:
        if message.step > self._recorded_step and not self.may_have_told:
            return False
        if self._told is None or self.may_have_told:
            self._told = event.told_metrics(session, self._row.id)
        return (message.step, frozenset(message.values)) in self._told

    @contextmanager
    def _storing(self) -> Iterator[ExitStack]:
        """Give a stack of what takes back bytes; it is done if the row that needs them is not in.

        While the database or the store is away, nothing is: the message comes again.
        """
        try:
            yield self._undo
        except Unavailable:
            raise
        except DatabaseFull as error:
            self.take_back()
            raise StorageFull(error.message) from error
        except Exception:
            self.take_back()
            raise
        else:
            self._undo.pop_all()  # a row needs them now

    def _store_resume(self, folder: str, *, undo: ExitStack) -> str | None:
        """Return the tree to go on from; without a folder it is the one before."""
        if not folder:
            return self._resume_digest
        digest = self._store.put_tree(Path(folder))
        undo.callback(
            remove_resume,
            digest,
            job_id=self._row.id,
            database=self._database,
            store=self._store,
        )
        return digest

    def _store_tree(self, folder: Path, *, undo: ExitStack) -> str:
        digest = self._store.put_tree(folder)
        undo.callback(remove_tree, digest, database=self._database, store=self._store)
        return digest

    def _store_results(self, path: Path, *, undo: ExitStack) -> File:
        digest = self._store.put_file(path)
        undo.callback(remove_file, digest, database=self._database, store=self._store)
        return File(
            id=new_id("file"),
            tenant=self._row.tenant,
            filename="step_metrics.csv",
            purpose="fine-tune-results",
            bytes=path.stat().st_size,
            digest=digest,
        )

    def _store_adapter(self, message: Succeeded, *, undo: ExitStack) -> Adapter:
        folder = Path(message.adapter_folder)
        return Adapter(
            name=model_name(self._row),
            tenant=self._row.tenant,
            base=self._row.base,
            method=message.method or self._row.method,
            digest=self._store_tree(folder, undo=undo),
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
            parameters=self._trained_parameters,
            job_id=self._row.id,
        )

    def _show_checkpoint(self, session: Session, message: CheckpointSaved, *, digest: str) -> None:
        name = f"{model_name(self._row)}:ckpt-step-{message.step}"
        session.add(
            Checkpoint(
                id=new_id("ftckpt"),
                job_id=self._row.id,
                tenant=self._row.tenant,
                name=name,
                step=message.step,
                digest=digest,
                metrics={"step": message.step, **message.metrics},
            )
        )
        event.add(session, self._row.id, message=f"New checkpoint created: {name}")

    def _replace_resume(self, digest: str | None) -> None:
        if self._resume_digest and self._resume_digest != digest:
            self._store.delete_tree(self._resume_digest)
        self._resume_digest = digest
