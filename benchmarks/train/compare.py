"""One comparison: the same steps by both sides in turns, checked to be equal, as a ratio."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Self

from pydantic import TypeAdapter

from benchmarks import record
from benchmarks.equality import Bound, check_curves, check_same
from benchmarks.sides import JSON, Side, interleave, ratio
from benchmarks.train.ours import make_order
from benchmarks.train.protocol import PEFT
from benchmarks.train.rows import Work
from models.nn.methods import AnyMethod
from models.nn.methods.base import Method

LOSSES = Bound(mean=0.04, most=0.08)
"""Both sides round to bfloat16 in other places, and steps carry that on: PEFT's first three with
LoRA were 0.033 in the mean and up to 0.067 from float32 (seven seeds), ours 0.003 and 0.005."""
FIRST_NORM = Bound(mean=0.05, most=0.05)
IN_FLOAT32 = Bound(mean=0.0001, most=0.0002)
"""Of losses and norms: what is left are the orders in which sums are taken."""


@dataclass(frozen=True)
class Layout:
    """How a peer lays out the rows of a step."""

    rows: int
    padding: str = "longest"
    autocast: bool = True
    """Over a base in bfloat16, that is: one in float32 needs none."""

    @property
    def casts(self) -> bool:
        """Whether there is something to cast."""
        return self.autocast and record.dtype() == "bfloat16"

    def question(self) -> JSON:
        """Return it as a question holds it."""
        return {"rows": self.rows, "padding": self.padding, "autocast": self.casts}

    def __str__(self) -> str:
        cast = "autocast" if self.casts else "float32 adapters"
        return f"{self.rows} rows, padding {self.padding}, {cast}"


@dataclass(frozen=True)
class Subject:
    """What is trained: our method, and the form in which a peer has it."""

    name: str
    method: dict[str, Any]
    form: str = PEFT
    losses: Bound = LOSSES
    norms_in_float32: bool = False
    """Whether norms are compared in float32 only; so there are steps in it in any case."""
    exact_norms: Bound = IN_FLOAT32
    needs_autocast: bool = False
    """Whether the peer's adapters compute beside a base in bfloat16 by autocast alone."""
    needs_warm_up: bool = False
    """Whether it is warmed up for even in a hurry, since its first steps wait for memory."""

    def parsed(self) -> Method:
        """Return our method."""
        method: Method = TypeAdapter[Any](AnyMethod).validate_python(self.method)
        return method


@dataclass
class Bench(AbstractContextManager["Bench"]):
    """Two running sides over one base, and where they keep their files."""

    base_folder: Path
    scratch: Path
    ours: Side
    peer: Side
    pad_id: int
    trial_steps: int = 3
    exact_steps: int = 0
    """So many are compared in float32 as well."""
    patience: float = inf
    """Seconds that a round of both, or of the layouts, may take for another one to follow."""
    _warm: bool = False
    """Whether the peer has computed anything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.peer.close()

    def compare(
        self, subject: Subject, work: Work, *, layouts: Sequence[Layout], repeats: int
    ) -> JSON:
        """Return both sides' speeds, their ratio, and how far their curves are apart.

        The peer's layout is the fastest of `layouts` over a few steps, and both begin warm.
        """
        questions = {
            "ours": {"order": self.order(subject, work)},
            "peer": self.peer_question(subject, work),
        }
        hurried = self.patience < inf and not subject.needs_warm_up
        chosen, tried = self.choose_layout(questions["peer"], layouts, hurried=hurried)
        questions["peer"]["layout"] = chosen.question()
        if tried:
            self.warm_up(subject, work)
        before = record.load()
        sides = [self.ours, self.peer]
        answers = interleave(sides, questions, repeats=repeats, patience=self.patience)
        checks = [
            check(mine, theirs, work=work, subject=subject)
            for mine, theirs in zip(answers["ours"], answers["peer"], strict=True)
        ]
        after = record.load()
        exact_steps = max(self.exact_steps, 2 if subject.norms_in_float32 else 0)
        exact = self.compare_in_float32(subject, work, steps=exact_steps) if exact_steps else {}
        speeds = {name: [speed(said) for said in runs] for name, runs in answers.items()}
        return {
            "tokens": sum(work.tokens),
            "steps": work.steps,
            "rows_per_step": work.rows_per_step,
            "tokens_per_second": speeds,
            "medians": {name: round(median(values), 1) for name, values in speeds.items()},
            "ratio": ratio(speeds["ours"], speeds["peer"]),
            "peer_layout": str(chosen),
            "peer_layouts_tried": tried,
            "equality": {**checks[-1], **exact},
            "losses": {name: runs[-1]["losses"] for name, runs in answers.items()},
            "load": [before, after],
        }

    def peer_question(self, subject: Subject, work: Work, *, dtype: str | None = None) -> JSON:
        """Export where we start, and return what the peer is asked, all but the layout."""
        dtype = dtype or record.dtype()
        start = self._folder(subject, work) / f"start-{dtype}"
        order = self.order(subject, work, dtype=dtype)
        said = self.ours.ask({"order": order, "export": str(start), "form": subject.form})
        return {
            "base_folder": str(self.base_folder),
            "start_folder": str(start),
            "token_file": work.token_file,
            "rows_per_step": work.rows_per_step,
            "learning_rate": subject.parsed().learning_rate * said["learning_rate_scale"],
            "dtype": dtype,
            "form": subject.form,
            "pad_id": self.pad_id,
            "seed": work.seed,
        }

    def choose_layout(
        self, question: JSON, layouts: Sequence[Layout], *, hurried: bool = False
    ) -> tuple[Layout, dict[str, float]]:
        """Return the layout in which the peer is fastest, and the best speed of each one tried.

        The first round meets everything for the first time, so there is a second one where there is
        something to choose: a whole one, or if the first took long, of what came first in it. Who
        is in a hurry and has nothing to choose tries nothing after the first comparison.
        """
        layouts = list({str(layout): layout for layout in layouts}.values())
        if len(layouts) == 1 and hurried and self._warm:
            return layouts[0], {}
        self._warm = True
        began = time.monotonic()
        best = {layout: self._try(layout, question) for layout in layouts}
        slow = time.monotonic() - began > self.patience
        if len(layouts) > 1:
            for layout in layouts[:1] if slow else layouts:
                best[layout] = max(best[layout], self._try(layout, question))
        chosen = max(best, key=best.__getitem__)
        return chosen, {str(layout): found for layout, found in best.items()}

    def _try(self, layout: Layout, question: JSON) -> float:
        asked = {**question, "layout": layout.question(), "steps": self.trial_steps}
        return speed(self.peer.ask(asked))

    def warm_up(self, subject: Subject, work: Work) -> None:
        """Have our side take a few steps that are not counted, as the peer does in its trial."""
        order = self.order(subject, work)
        order["spec"]["loop"]["max_tokens"] = sum(work.tokens[: self.trial_steps])
        self.ours.ask({"order": order})

    def compare_in_float32(self, subject: Subject, work: Work, *, steps: int) -> JSON:
        """Return how equal a run of so many steps is where both sides compute in float32."""
        order = self.order(subject, work, dtype="float32")
        order["spec"]["loop"]["max_tokens"] = sum(work.tokens[:steps])
        layout = Layout(work.rows_per_step, autocast=False).question()
        question = self.peer_question(subject, work, dtype="float32")
        ours = self.ours.ask({"order": order})
        peer = self.peer.ask({**question, "layout": layout, "steps": steps})
        bounds = {"losses": IN_FLOAT32, "norms": subject.exact_norms}
        what = f"{subject.name} in float32: "
        return {
            f"{name}_in_float32": check_curves(
                ours[name], peer[name], bound=bound, what=what + name
            )
            for name, bound in bounds.items()
        }

    def job(self, subject: Subject, work: Work) -> JSON:
        """Return the work as a job that somebody posts."""
        loop = {
            "n_epochs": 1,
            "batch_size": work.rows_per_step,
            "learning_rate": subject.parsed().learning_rate,
            "warmup_ratio": 0.0,
            "max_sequence_length": work.max_length,
        }
        return {
            "training_file": work.training_file,
            "method": subject.method,
            "loop": loop,
            "seed": work.seed,
        }

    def order(self, subject: Subject, work: Work, *, dtype: str | None = None) -> JSON:
        """Return the work as the order that our trainer reads."""
        order = make_order(
            base_folder=self.base_folder,
            folder=self._folder(subject, work),
            **self.job(subject, work),
        )
        if dtype is not None:
            order["spec"]["loop"]["dtype"] = dtype
        return order

    def _folder(self, subject: Subject, work: Work) -> Path:
        return self.scratch / f"{subject.name}-{work.name}-{Path(work.training_file).parent.name}"


def speed(said: JSON) -> float:
    """Return tokens of data a second, padding not counted, from the end of the first step on."""
    seconds = said["ends"][-1] - said["ends"][0]
    return round(sum(said["tokens"][1:]) / seconds, 2)


def check(ours: JSON, peer: JSON, *, work: Work, subject: Subject) -> JSON:
    """Return how equal two runs were; `Unequal` if they did not do the same work."""
    check_same(ours["tokens"], list(work.tokens), what=f"{subject.name}: our tokens of each step")
    check_same(
        peer["tokens"], list(work.tokens), what=f"{subject.name}: peer's tokens of each step"
    )
    found = {
        "losses": check_curves(
            ours["losses"], peer["losses"], bound=subject.losses, what=f"{subject.name}: losses"
        )
    }
    if not subject.norms_in_float32:
        found["first_norm"] = check_curves(
            ours["norms"][:1],
            peer["norms"][:1],
            bound=FIRST_NORM,
            what=f"{subject.name}: norm of the first gradient",
        )
    return found
