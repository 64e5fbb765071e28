"""`python -m benchmarks.serve`: serving against peers, against its own base, and under load.

Every part prints what it measured as it goes; the last line is one JSON object whose `ratios` are
figures that count. `benchmarks/serve/README.md` says what each of them is.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path

from benchmarks import record
from benchmarks.failures import Failures
from benchmarks.serve import crowd, outside, steps, swaps, versus
from benchmarks.serve.data import DATA, find_training
from benchmarks.serve.floor import Speeds
from benchmarks.serve.measure import say
from benchmarks.serve.peers import vllm_cpu
from benchmarks.serve.world import World, make_world
from benchmarks.sides import JSON, start_plain

PARTS = ("adapters", "base", "steps", "swaps", "http", "training", "outside", "growth")
QUICK = ("adapters", "base", "steps", "swaps", "http", "training")
PATIENCE_SECONDS = 15.0
"""A side that has taken longer is not asked again when it is to be quick."""
RATIOS = (
    "mixed_vs_vllm",
    "mixed_vs_peft",
    "base_vs_vllm",
    "single_vs_vllm",
    "single_vs_llamacpp",
    "mixed_over_base",
    "kinds_over_base",
    "swap_over_copy",
    "swap_gap",
    "registered_1000",
    "beside_training",
)
VLLM, ALL_CORES = "vllm", "vllm-all-cores"
CONTESTS = {
    "mixed_vs_vllm": ("adapters", "mixed", VLLM),
    "mixed_vs_peft": ("adapters", "mixed", versus.PEFT),
    "base_vs_vllm": ("base", "base", VLLM),
    "single_vs_vllm": ("adapters", "single", VLLM),
    "single_vs_llamacpp": ("base", "single_base", "llamacpp-bf16"),
}
"""The ratios against peers: the part, its contest, and the peer."""
FURTHER = {
    f"{name}_all_cores": (part, contest, ALL_CORES)
    for name, (part, contest, peer) in CONTESTS.items()
    if peer == VLLM
} | {
    "single_vs_undrafted": ("base", "single_base", versus.UNDRAFTED),
    "single_with_adapter_vs_undrafted": ("adapters", "single", versus.UNDRAFTED),
}
"""Ratios beside them: vLLM, which by itself leaves a core free, told to compute on all; and our
own engine without drafts."""


def main() -> None:
    """Measure what the command line asks for, and leave the results."""
    options = read_options()
    start_plain()
    record.announce()
    began, failures = time.monotonic(), Failures()
    with tempfile.TemporaryDirectory(prefix="graftwork-bench-") as folder:
        world = make_world(Path(folder), data=options.data, seed=options.seed)
        parts = measure(world, options, failures)
        versions = dict(world.versions)
    ratios, wrong = ratios_of(parts), wrong_of(parts)
    result = {
        "benchmark": "serve",
        "quick": options.quick,
        "parts_run": list(options.parts),
        "repeats": options.repeats,
        "data": options.data.name,
        "seed": options.seed,
        "ratios": ratios,
        "further": ratios_against(parts, FURTHER),
        "wrong": wrong,
        "failures": failures,
        "minutes": round((time.monotonic() - began) / 60, 1),
        **record.gather(),
        "peers": versions,
    }
    record.save(options.name, {**result, "parts": parts}, folder=options.out)
    record.finish(result)
    if wrong or failures or (set(options.parts) >= set(QUICK) and set(ratios) != set(RATIOS)):
        sys.exit(1)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.serve", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats; only parts that have ratios"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="a folder of chat sets")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--name", default="serve", help="of the result file")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",") if options.parts else QUICK if options.quick else PARTS
    options.repeats = options.repeats or (2 if options.quick else 5)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]}")
    return options


def measure(world: World, options: argparse.Namespace, failures: Failures) -> JSON:
    """Run the parts that are wanted, each after the other; return what they found."""
    repeats, patience = options.repeats, PATIENCE_SECONDS if options.quick else inf
    vllms = {VLLM: vllm_cpu.PEER} | ({} if options.quick else {ALL_CORES: vllm_cpu.ALL_CORES})

    def contests(make: Callable[..., versus.Part]) -> JSON:
        part = make(world, vllms, quick=options.quick)
        return versus.against_peers(
            world, part, failures=failures, repeats=repeats, patience=patience
        )

    speeds = Speeds.measure()
    say(f"this machine reads {speeds.bandwidth / 1e9:.1f} GB/s")
    say(f"and multiplies at {speeds.rate / 1e9:.0f} GFLOP/s")
    doing: dict[str, Callable[[], JSON]] = {
        "adapters": lambda: contests(versus.with_adapters),
        "base": lambda: contests(versus.without_adapters),
        "steps": lambda: steps.ratios_of_steps(world, repeats=repeats + 1, speeds=speeds),
        "swaps": lambda: swaps.over_one_engine(world, repeats=repeats),
        "http": lambda: crowd.over_http(world, repeats=2 * repeats, mixed=not options.quick),
        "training": lambda: crowd.beside_training(
            world, file=find_training(options.data), repeats=repeats, quick=options.quick
        ),
        "outside": lambda: outside.generate_load(world, requests=32 * (repeats + 1)),
        "growth": lambda: steps.growth(world, repeats=repeats, speeds=speeds),
    }
    found: JSON = asdict(speeds)
    for part in options.parts:
        say(f"--- {part}")
        began = time.monotonic()
        with failures.guard(part):
            found[part] = doing[part]()
        say(f"--- {part} took {time.monotonic() - began:.0f} s")
    return found


def ratios_of(parts: JSON) -> dict[str, float]:
    """Return the ratios that the parts which ran give."""
    found = ratios_against(parts, CONTESTS)
    for part, keys in (
        ("steps", ("mixed_over_base", "kinds_over_base")),
        ("http", ("registered_1000",)),
        ("training", ("beside_training",)),
    ):
        if part in parts:
            found |= {key: parts[part][key] for key in keys}
    if "swaps" in parts:
        found["swap_over_copy"] = parts["swaps"]["first"]["swap_over_copy"]
        if not parts["swaps"]["others"]["wrong"]:
            found["swap_gap"] = parts["swaps"]["others"]["swap_gap"]
    return {name: round(found[name], 3) for name in RATIOS if name in found}


def ratios_against(parts: JSON, contests: Mapping[str, tuple[str, str, str]]) -> dict[str, float]:
    """Return the ratios of those contests in which both took part, and neither was wrong."""
    found: dict[str, float] = {}
    for name, (part, contest, peer) in contests.items():
        figures = parts.get(part, {}).get(contest, {})
        right = figures.get("sides", {}).keys() - set(figures.get("wrong", ()))
        if {versus.OURS, peer} <= right:
            found[name] = round(versus.ratio(figures, peer), 3)
    return found


def wrong_of(parts: JSON) -> list[str]:
    """Return whose tokens were wrong, and where."""
    figures = {
        f"{part}.{name}": value
        for part in ("adapters", "base", "swaps")
        for name, value in parts.get(part, {}).items()
    }
    return sorted(
        f"{where}: {who}" for where, value in figures.items() for who in value.get("wrong", ())
    )


if __name__ == "__main__":
    main()
