"""The parts of the benchmark: what each measures, and the ratios that it is read by."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

from benchmarks.equality import Unequal
from benchmarks.sides import JSON, Side, SideFailed, environment
from benchmarks.train.compare import Bench, Layout
from benchmarks.train.gang import JOBS, STEPS, compare_gang, make_jobs
from benchmarks.train.kinds import KINDS, LORA, WITHOUT_PEER
from benchmarks.train.rows import (
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

SHAPES = ((4, 256), (8, 128))
"""Rows of a step and tokens of a row where all rows are equally long."""
SEED = 7


@dataclass
class Stage:
    """What all parts share: the base, the data, where to write, and how sides are started."""

    base_folder: Path
    data: Path | None
    scratch: Path
    size: Size
    variables: dict[str, str]
    failures: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Note what fails in this block and go on: the benchmark as a whole has failed then."""
        try:
            yield
        except (Unequal, SideFailed) as error:
            self.failures[name] = str(error)
            print(f"  {name} failed: {error}", flush=True)

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

    def bench(self) -> Bench:
        """Start both sides."""
        return Bench(
            self.base_folder,
            self.scratch,
            self.side("ours"),
            self.side("peer"),
            pad_id=self.renderer.eos_id,
        )

    def side(
        self, name: str, module: str | None = None, *, variables: dict[str, str] | None = None
    ) -> Side:
        """Start one side."""
        return Side(
            name,
            f"benchmarks.train.{module or name}",
            log=self.scratch / f"{name}.log",
            variables=variables or self.variables,
        )

    def chat(self, rows: RowSet, *, steps: int) -> Work:
        """Return steps of a set, batched as the peer groups them."""
        batches = grouped_batches(
            rows.lengths, rows_per_step=self.size.rows_per_step, steps=steps, seed=SEED
        )
        return chat_work(rows, batches, folder=self.scratch / f"chat-{steps}")

    def full(self, rows: int, length: int) -> Work:
        """Return steps of rows of one length, every token a label."""
        return full_work(
            self.first_set,
            renderer=self.renderer,
            length=length,
            rows_per_step=rows,
            steps=self.size.fixed_steps,
            folder=self.scratch / "fixed",
        )


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
            layouts = (Layout(rows), Layout(rows, autocast=False), Layout(rows // 2))
            repeats = stage.size.fixed_repeats
            found[work.name] = bench.compare(LORA, work, layouts=layouts, repeats=repeats)
            _print(work.name, found[work.name])
    for rows, length in SHAPES:
        work = stage.full(rows, length)
        memory[work.name] = _memory(stage, work, rows=rows)
        print(f"  {work.name:<20} memory {memory[work.name]}", flush=True)
    return {
        "comparisons": found,
        "memory": memory,
        "ratios": {
            "lora_fixed_vs_peft": min(said["ratio"] for said in found.values()),
            "memory_over_peft": max(said["ratio"] for said in memory.values()),
        },
    }


def _memory(stage: Stage, work: Work, *, rows: int) -> JSON:
    """Return the peak of each side's process; of the peer's ways the one that needs least."""
    plain = environment(threads=int(stage.variables["OMP_NUM_THREADS"]), keep_memory=False)
    allocators = {"kept": stage.variables, "default": plain}
    peaks: dict[str, int] = {}
    with stage.bench() as bench:
        question = bench.peer_question(LORA, work)
        order = bench.order(LORA, work)
    for cast in stage.size.memory_casts:
        layout = Layout(rows, autocast=cast)
        asked = {**question, "layout": layout.question(), "steps": 2}
        for allocator, variables in allocators.items():
            with stage.side("peer", variables=variables) as peer:
                peaks[f"{layout}, {allocator} allocator"] = peer.ask(asked)["peak_bytes"]
    with stage.side("ours") as side:
        ours = side.ask({"order": order})["peak_bytes"]
    least = min(peaks.values())
    return {"ours": ours, "peer": least, "peers_ways": peaks, "ratio": round(ours / least, 3)}


def measure_kinds(stage: Stage) -> JSON:
    """Every other kind that is trained by gradient: the lowest ratio counts."""
    found = {}
    work = stage.chat(stage.first_set, steps=stage.size.kind_steps)
    with stage.bench() as bench:
        for subject in KINDS:
            with stage.guard(subject.name):
                found[subject.name] = bench.compare(
                    subject, work, layouts=stage.size.kind_layouts, repeats=stage.size.kind_repeats
                )
                _print(subject.name, found[subject.name])
    return {
        "comparisons": found,
        "without_peer": WITHOUT_PEER,
        "ratios": {"kinds_vs_peft_min": min(said["ratio"] for said in found.values())},
    }


def measure_gang(stage: Stage) -> JSON:
    """Small jobs from queued to published: as a gang, alone, and as peft scripts."""
    works = make_jobs(stage.first_set, jobs=JOBS, steps=STEPS, folder=stage.scratch / "jobs")
    settings = {"GRAFTWORK_DATA_DIR": str(stage.base_folder.parents[1])}
    variables = {**stage.variables, **settings}
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
