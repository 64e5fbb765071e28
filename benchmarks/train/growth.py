"""What our training costs as work grows, and where the time of a step goes; for the reader."""

import json
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

from benchmarks.sides import JSON
from benchmarks.train.compare import Subject, speed
from benchmarks.train.gang import make_jobs
from benchmarks.train.kinds import LORA, RANK
from benchmarks.train.protocol import IGNORED
from benchmarks.train.rows import Work
from benchmarks.train.stage import Stage

STEPS = 4
PROFILED = (4, 256)
"""Rows of a step and tokens of a row."""
RANKS = (4, 16, 64)
ROWS = (2, 8, 32)
LENGTHS = ((16, 64), (4, 256), (1, 1024))
"""Rows of a step and tokens of a row: 1,024 tokens a step always."""
JOBS = (1, 2, 4, 8)
JOB_STEPS = 10


def profile_step(stage: Stage) -> JSON:
    """Return the parts of a LoRA step on full rows, and the floor of its products.

    Such rows begin differently: of real ones, what they share is computed once, which no floor by
    tokens of data would know.
    """
    work = stage.full(*PROFILED)
    with stage.bench() as bench, stage.side("profile") as side:
        question = {
            "order": bench.order(LORA, work),
            "steps": work.steps,
            "rank": RANK,
            "tokens_per_step": mean(work.tokens[1:]),
            "labelled_per_step": _labelled(work),
        }
        said = side.ask(question)
    print(f"  a step: {said}", flush=True)
    return said


def grow(stage: Stage) -> JSON:
    """Return our speed by rank, rows of a step, and length; and seconds by jobs of a gang."""
    found: JSON = {"rank": {}, "rows": {}, "length": {}, "jobs": {}}
    rows = stage.first_set
    with stage.bench() as bench:

        def measure(subject: Subject, work: Work) -> float:
            return speed(bench.ours.ask({"order": bench.order(subject, work)}))

        for rank in RANKS:
            subject = Subject(f"lora-{rank}", {"type": "lora", "rank": rank})
            found["rank"][rank] = measure(subject, stage.chat(rows, steps=STEPS))
        for count in ROWS:
            work = stage.chat(rows, steps=STEPS, rows_per_step=count)
            found["rows"][count] = measure(LORA, work)
        for count, length in LENGTHS:
            found["length"][length] = measure(LORA, stage.full(count, length))
        found["jobs"] = _grow_gang(stage)
    for name, values in found.items():
        unit = "seconds" if name == "jobs" else "tokens/s"
        print(f"  by {name}, {unit}: {values}", flush=True)
    return found


def _grow_gang(stage: Stage) -> dict[int, float]:
    """Return seconds from queued to published of gangs of few short jobs."""
    works = make_jobs(
        stage.first_set, jobs=max(JOBS), steps=JOB_STEPS, folder=stage.scratch / "grown"
    )
    seconds = {}
    with ExitStack() as stack:
        bench = stack.enter_context(stage.bench())
        line = stack.enter_context(stage.side("line", variables=stage.line_variables))
        for count in JOBS:
            jobs = [bench.job(LORA, work) for work in works[:count]]
            said = line.ask({"jobs": jobs, "variables": stage.line_variables})
            seconds[count] = said["seconds"]
    return seconds


def _labelled(work: Work) -> float:
    """Return how many tokens of a step are labels, in the mean."""
    lines = Path(work.token_file).read_text().splitlines()
    labels = sum(label != IGNORED for line in lines for label in json.loads(line)["labels"])
    return labels / work.steps
