"""The parts of the benchmark: what each measures, and the ratios that it is read by."""

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from benchmarks.environments import make_environment
from benchmarks.sides import JSON, environment
from benchmarks.train.compare import Bench, Layout, Subject
from benchmarks.train.gang import JOBS, STEPS, compare_gang
from benchmarks.train.growth import grow, profile_steps
from benchmarks.train.kinds import (
    ADAPTERS_ENVIRONMENT,
    BOTTLENECK,
    KINDS,
    LORA,
    WITHOUT_PEER,
)
from benchmarks.train.rows import Work
from benchmarks.train.stage import Stage

SHAPES = ((4, 256), (8, 128))
"""Rows of a step and tokens of a row where all rows are equally long."""


def measure_chat(stage: Stage) -> JSON:
    """LoRA on real rows: the lower ratio of the sets counts."""
    found = {}
    with stage.bench() as bench:
        for name, rows in stage.sets.items():
            work = stage.chat(rows, steps=stage.size.chat_steps)
            found[name] = bench.compare(
                LORA, work, layouts=stage.size.chat_layouts, repeats=stage.size.chat_repeats
            )
            _print(name, found[name])
    lowest = min(said["ratio"] for said in found.values())
    return {"comparisons": found, "ratios": {"lora_vs_peft_trainer": lowest}}


def measure_fixed(stage: Stage) -> JSON:
    """LoRA on full rows of one length, all tokens labelled; and the memory of those steps."""
    found, memory = {}, {}
    with stage.bench() as bench:
        for rows, length in SHAPES:
            work = stage.full(rows, length)
            layouts = [
                Layout(rows // parts, autocast=cast)
                for cast in stage.size.fixed_casts
                for parts in stage.size.fixed_parts
            ]
            repeats = stage.size.fixed_repeats
            found[work.name] = bench.compare(LORA, work, layouts=layouts, repeats=repeats)
            _print(work.name, found[work.name])
        for rows, length in SHAPES[: stage.size.memory_shapes]:
            work = stage.full(rows, length)
            memory[work.name] = _memory(stage, bench, work, rows=rows)
            print(f"  {work.name:<20} memory {memory[work.name]}", flush=True)
    return {
        "comparisons": found,
        "memory": memory,
        "ratios": {
            "lora_fixed_vs_peft": min(said["ratio"] for said in found.values()),
            "memory_over_peft": max(said["ratio"] for said in memory.values()),
        },
    }


def _memory(stage: Stage, bench: Bench, work: Work, *, rows: int) -> JSON:
    """Return the peaks of processes of their own; of the peer's ways the one that needs least.

    It runs with the system's own settings of the allocator; with ours it needs 3 to 6 % more.
    """
    plain = environment(threads=int(stage.variables["OMP_NUM_THREADS"]), keep_memory=False)
    peaks: dict[str, int] = {}
    question, order = bench.peer_question(LORA, work), bench.order(LORA, work)
    for cast in stage.size.memory_casts:
        layout = Layout(rows, autocast=cast)
        asked = {**question, "layout": layout.question(), "steps": 2}
        with stage.side("peer", variables=plain) as peer:
            peaks[str(layout)] = peer.ask(asked)["peak_bytes"]
    with stage.side("ours") as side:
        ours = side.ask({"order": order})["peak_bytes"]
    least = min(peaks.values())
    return {"ours": ours, "peer": least, "peers_ways": peaks, "ratio": round(ours / least, 3)}


def measure_kinds(stage: Stage) -> JSON:
    """Every other kind that is trained by gradient: the lowest ratio counts."""
    found: dict[str, JSON] = {}
    with stage.bench() as bench:
        for subject in KINDS:
            _measure_kind(stage, bench, subject, found)
    with stage.failures.guard(BOTTLENECK.name):
        python = make_environment("adapters", ADAPTERS_ENVIRONMENT)
        with stage.bench(module="peer_adapters", python=python) as bench:
            _measure_kind(stage, bench, BOTTLENECK, found)
    ratios = [said["ratio"] for said in found.values()]
    whole = len(ratios) == len(KINDS) + 1  # the lowest of some may be higher than that of all
    return {
        "comparisons": found,
        "without_peer": WITHOUT_PEER,
        "ratios": {"kinds_vs_peft_min": min(ratios)} if whole else {},
    }


def _measure_kind(stage: Stage, bench: Bench, subject: Subject, found: dict[str, JSON]) -> None:
    size = stage.size
    work = stage.chat(stage.first_set, steps=size.kind_steps)
    layouts = [one for one in size.kind_layouts if one.autocast or not subject.needs_autocast]
    with stage.failures.guard(subject.name):
        found[subject.name] = bench.compare(
            subject, work, layouts=layouts, repeats=size.kind_repeats
        )
        _print(subject.name, found[subject.name])


def measure_gang(stage: Stage) -> JSON:
    """Small jobs from queued to published: as a gang, alone, and as peft scripts."""
    works = stage.jobs(JOBS, steps=STEPS, folder="jobs")
    variables = stage.line_variables
    with ExitStack() as stack:
        bench = stack.enter_context(stage.bench())
        line = stack.enter_context(stage.side("line", variables=variables))
        said = compare_gang(
            bench,
            line,
            subject=LORA,
            works=works,
            separate=stage.size.jobs_run_separately,
            repeats=stage.size.gang_repeats,
            variables=variables,
        )
    seconds = {name: median(values) for name, values in said["seconds"].items()}
    print(f"  {len(works)} jobs, seconds: {seconds}", flush=True)
    return {
        "comparison": said,
        "ratios": {name: said[name] for name in ("gang_vs_alone", "gang_vs_peft")},
    }


def measure_growth(stage: Stage) -> JSON:
    """Where a step's time goes, and what our training costs as work grows."""
    found = profile_steps(stage)
    growth = grow(stage)
    return {"profile": found, "growth": growth, "ratios": {}}


def _print(name: str, said: JSON) -> None:
    medians, apart = said["medians"], said["equality"]["losses"]["mean"]
    print(
        f"  {name:<20} ours {medians['ours']:8.1f} peer {medians['peer']:8.1f} tokens/s "
        f"ratio {said['ratio']:.2f}  (peer: {said['peer_layout']}; losses {apart:.2%} apart; "
        f"load {said['load'][0]})",
        flush=True,
    )


PARTS: dict[str, Callable[[Stage], JSON]] = {
    "lora": measure_chat,
    "fixed": measure_fixed,
    "kinds": measure_kinds,
    "gang": measure_gang,
}
EXTRA: dict[str, Callable[[Stage], JSON]] = {"profile": measure_growth}
"""Parts that have no ratio and run only when they are asked for."""
