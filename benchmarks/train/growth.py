"""What our training costs as work grows, and where the time of a step goes; for the reader."""

from contextlib import ExitStack

from benchmarks.sides import JSON
from benchmarks.train.compare import Subject, speed
from benchmarks.train.kinds import LORA
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


def profile_steps(stage: Stage) -> JSON:
    """Return the parts of LoRA steps on full and on real rows, and the floor of their products."""
    works = {"full": stage.full(*PROFILED)}
    works |= {name: stage.chat(rows, steps=STEPS) for name, rows in stage.sets.items()}
    found: JSON = {}
    with stage.bench() as bench:
        for name, work in works.items():
            with stage.side("profile") as side:
                asked = {"order": bench.order(LORA, work), "steps": work.steps}
                found[name] = side.ask(asked)
            print(f"  a step of {name}: {found[name]}", flush=True)
    return found


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
    works = stage.jobs(max(JOBS), steps=JOB_STEPS, folder="grown")
    seconds = {}
    with ExitStack() as stack:
        bench = stack.enter_context(stage.bench())
        line = stack.enter_context(stage.side("line", variables=stage.line_variables))
        for count in JOBS:
            jobs = [bench.job(LORA, work) for work in works[:count]]
            said = line.ask({"jobs": jobs, "variables": stage.line_variables})
            seconds[count] = said["seconds"]
    return seconds
