"""An outside load generator, AIPerf, against `graftwork serve`: throughput and latencies."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.serve.installed import Installed, installed
from benchmarks.serve.measure import say
from benchmarks.serve.peers.peer import Peer
from benchmarks.serve.world import LENGTH, ROWS, TOKENS, World
from benchmarks.sides import ANSWER_SECONDS, JSON, SideFailed

GENERATOR = Peer(name="aiperf", module="", requirements=("aiperf",), packages=("aiperf",))
METRICS = {
    "output_token_throughput": ("avg",),
    "request_throughput": ("avg",),
    "time_to_first_token": ("p50", "p99"),
    "inter_token_latency": ("p50", "p99"),
    "request_latency": ("p50", "p99"),
}
"""What is kept of AIPerf's report, each with its own unit."""


def generate_load(world: World, *, requests: int) -> JSON:
    """Let AIPerf send streams at 32 at a time: to the base, and to 8 adapters in turn."""
    world.versions.setdefault(GENERATOR.name, GENERATOR.versions())
    with installed(world.folder / "outside") as site:
        site.register(world.loras)
        site.wave(world.work.order([*world.names]))
        mixes = {"base": [site.settings.base], "mixed": world.names}
        return {
            name: profile(world, site, models, requests=requests, label=name)
            for name, models in mixes.items()
        }


def profile(
    world: World, site: Installed, models: list[str], *, requests: int, label: str
) -> dict[str, Any]:
    """Run AIPerf once and return its figures; `SideFailed` with its own words if it cannot."""
    folder = world.folder / f"aiperf-{label}"
    done = subprocess.run(
        command(world, site, models, requests=requests, folder=folder),
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=ANSWER_SECONDS,
    )
    reports = list(folder.rglob("profile_export_aiperf.json"))
    if done.returncode != 0 or not reports:
        raise SideFailed(f"AIPerf failed:\n{done.stdout[-3000:]}")
    figures = read_report(json.loads(reports[0].read_text()))
    rate = figures["output_token_throughput"]
    say(f"AIPerf, {label}: {rate['avg']:.1f} {rate['unit']}")
    return figures


def command(
    world: World, site: Installed, models: list[str], *, requests: int, folder: Path
) -> list[str]:
    """Return the command line of one run."""
    options = {
        "--model-names": ",".join(models),
        "--model-selection-strategy": "round_robin",
        "--url": site.url.removesuffix("/v1"),
        "--endpoint-type": "completions",
        "--api-key": site.key,
        "--tokenizer": world.base,
        "--concurrency": str(ROWS),
        "--request-count": str(requests),
        "--warmup-request-count": str(ROWS),
        "--synthetic-input-tokens-mean": str(LENGTH),
        "--synthetic-input-tokens-stddev": "0",
        "--output-tokens-mean": str(TOKENS),
        "--output-tokens-stddev": "0",
        "--random-seed": "7",
        "--ui": "none",
        "--output-artifact-dir": str(folder),
    }
    given = [word for option in options.items() for word in option]
    extra = ["--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{TOKENS}"]
    program = str(GENERATOR.python().with_name("aiperf"))
    return [program, "profile", *given, *extra, "--streaming"]


def read_report(report: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics that are kept, with their units."""
    return {
        name: {"unit": report[name]["unit"], **{part: report[name][part] for part in parts}}
        for name, parts in METRICS.items()
    }
