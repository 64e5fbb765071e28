"""What all parts of the benchmark share: base, data, sizes, and how sides are started."""

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.failures import Failures
from benchmarks.sides import Side
from benchmarks.train.compare import Bench
from benchmarks.train.gang import make_jobs
from benchmarks.train.rows import (
    SEED,
    RowSet,
    Work,
    chat_work,
    find_sets,
    full_work,
    grouped_batches,
    read_set,
)
from benchmarks.train.sizes import Size
from models.nn.chat import Renderer


@dataclass
class Stage:
    """What all parts share: the base, the data, where to write, and how sides are started."""

    base_folder: Path
    data: Path | None
    scratch: Path
    size: Size
    variables: dict[str, str]
    seed: int = SEED
    failures: Failures = field(default_factory=Failures)

    @cached_property
    def renderer(self) -> Renderer:
        """The base's tokenizer and template."""
        return Renderer.load(self.base_folder)

    @cached_property
    def sets(self) -> dict[str, RowSet]:
        """The data sets by name."""
        files = find_sets(self.data, scratch=self.scratch)
        return {name: read_set(name, path, renderer=self.renderer) for name, path in files.items()}

    @property
    def first_set(self) -> RowSet:
        """The set on which parts that need only one are measured."""
        return next(iter(self.sets.values()))

    @property
    def line_variables(self) -> dict[str, str]:
        """The environment of a worker and its line of jobs."""
        return {**self.variables, "GRAFTWORK_DATA_DIR": str(self.base_folder.parents[1])}

    def bench(self, *, module: str = "peer", python: Path | str = sys.executable) -> Bench:
        """Start both sides; the peer's is a module that an environment of its own may run."""
        return Bench(
            self.base_folder,
            self.scratch,
            self.side("ours"),
            self.side("peer", module, python=python),
            pad_id=self.renderer.eos_id,
            trial_steps=self.size.trial_steps,
            exact_steps=self.size.exact_steps,
            patience=self.size.patience,
        )

    def side(
        self,
        name: str,
        module: str | None = None,
        *,
        python: Path | str = sys.executable,
        variables: dict[str, str] | None = None,
    ) -> Side:
        """Start one side."""
        return Side(
            name,
            f"benchmarks.train.{module or name}",
            log=self.scratch / f"{name}.log",
            python=python,
            variables=variables or self.variables,
        )

    def chat(self, rows: RowSet, *, steps: int, rows_per_step: int | None = None) -> Work:
        """Return steps of a set, batched as the peer groups them; fewer if it has not so many."""
        count = rows_per_step or self.size.rows_per_step
        steps = min(steps, len(rows.lines) // count)
        batches = grouped_batches(rows.lengths, rows_per_step=count, steps=steps, seed=self.seed)
        folder = self.scratch / f"chat-{steps}x{count}"
        return chat_work(rows, batches, folder=folder, seed=self.seed)

    def full(self, rows: int, length: int) -> Work:
        """Return steps of rows of one length, every token a label."""
        return full_work(
            self.first_set,
            renderer=self.renderer,
            length=length,
            rows_per_step=rows,
            steps=self.size.fixed_steps,
            folder=self.scratch / "fixed",
            seed=self.seed,
        )

    def jobs(self, count: int, *, steps: int, folder: str) -> list[Work]:
        """Return small jobs over the first set."""
        return make_jobs(
            self.first_set, jobs=count, steps=steps, folder=self.scratch / folder, seed=self.seed
        )
