"""What a whole installation serves over HTTP: with few adapters, with many, and while it trains."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.serve.installed import Installed, installed
from benchmarks.serve.measure import say
from benchmarks.serve.work import Order, in_turn
from benchmarks.serve.world import LENGTH, ROWS, TOKENS, World
from benchmarks.sides import JSON, cores, rotated
from cli.client import Client

REGISTERED = 1000
SMALL: JSON = {"rank": 1, "target_modules": ["q_proj"]}
"""Adapters that are only registered, so that a thousand of them are soon made and fit any disk."""
POLL_SECONDS = 0.5
TRAINING = {
    "seed": 7,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 100}}},
    "peft": {"type": "lora", "rank": 16},
}
CORES = str(len(cores()))
AS_STARTED = "as_started"
POLICIES = {
    AS_STARTED: {},
    "each_for_itself": {
        "OMP_WAIT_POLICY": "ACTIVE",
        "GRAFTWORK_ENGINE__COMPUTE__THREADS": CORES,
        "GRAFTWORK_WORKER__COMPUTE__THREADS": CORES,
    },
}
"""How the processes share cores: as `graftwork serve` has it, and as if each were alone."""


def over_http(world: World, *, repeats: int, mixed: bool) -> JSON:
    """Time 32 requests for one adapter with 1 and 1,000 registered, and over 8 if `mixed`.

    Two installations take turns, for what else the machine does to slow both alike.
    """
    crowd, one = world.more_loras(REGISTERED - 1, **SMALL), world.names[:1]
    with installed(world.folder / "few") as few, installed(world.folder / "many") as many:
        few.register(world.loras[:1])
        many.register([*world.loras[:1], *crowd])
        sites = {"1 registered": few, f"{REGISTERED} registered": many}
        found: dict[str, list[float]] = {name: [] for name in sites}
        for site in sites.values():
            rate_of(world, site, one)
        for turn in range(repeats):
            for name in rotated(list(sites), turn):
                found[name].append(rate_of(world, sites[name], one))
        alone, among = found.values()
        if mixed:
            few.register(world.loras[1:])
            rate_of(world, few, world.names)
            found["mixed"] = [rate_of(world, few, world.names) for _ in range(repeats)]
    for name, rates in found.items():
        told = " ".join(f"{rate:.1f}" for rate in rates)
        say(f"over HTTP, {name:<16} {median(rates):9.1f} tokens/s   ({told})")
    return {"tokens_per_second": found, "registered_1000": median(among) / median(alone)}


def rate_of(world: World, site: Installed, names: list[str]) -> float:
    """Return tokens a second of 32 requests over these adapters."""
    order = requests(world, names)
    return order.generated / site.wave(order)


def requests(world: World, names: list[str]) -> Order:
    """Return 32 requests over these adapters in turn."""
    return world.work.order(in_turn(names, ROWS), length=LENGTH, tokens=TOKENS)


def beside_training(world: World, *, file: Path, repeats: int, quick: bool) -> JSON:
    """Time serving alone and beside a job as it is started.

    Two processes that both always have work share the cores, so the fair share of each is half:
    the ratio is the throughput beside the job over half of the throughput alone. Unless it is to
    be `quick`, the job is timed alone as well, and all of it again under the other policy.
    """
    found = {}
    for name in (AS_STARTED,) if quick else POLICIES:
        folder = world.folder / f"training-{name}"
        with installed(folder, variables=POLICIES[name]) as site, site.client() as client:
            site.register(world.loras)
            rate_of(world, site, world.names)
            quiet = [rate_of(world, site, world.names) for _ in range(repeats)]
            with training(client, file) as job:
                began = speed_mark(client, job)
                busy = [rate_of(world, site, world.names) for _ in range(repeats)]
                trained = {"beside": speed_between(began, speed_mark(client, job))}
                if not quick:
                    began = speed_mark(client, job)
                    time.sleep(8.0)
                    trained["alone"] = speed_between(began, speed_mark(client, job))
        found[name] = {
            "quiet": quiet,
            "beside": busy,
            "training_tokens_per_second": trained,
            "over_fair_share": median(busy) / (median(quiet) / 2),
        }
        say(f"{name}: {median(quiet):.1f} tokens/s alone, {median(busy):.1f} beside training")
        for how, rate in trained.items():
            say(f"{name}: training {how:<8} {rate:9.1f} tokens/s")
    return {"policies": found, "beside_training": found[AS_STARTED]["over_fair_share"]}


@contextmanager
def training(client: Client, file: Path) -> Iterator[str]:
    """Have a job train until the block ends; it is under way when the block begins."""
    uploaded = client.upload(file)
    body = {"model": client.base_model(), "training_file": uploaded["id"], **TRAINING}
    job = client.post("/fine_tuning/jobs", body)["id"]
    while not (state := client.get(f"/fine_tuning/jobs/{job}"))["trained_tokens"]:
        if state["status"] in ("failed", "cancelled", "succeeded"):
            raise RuntimeError(f"The job {state['status']}: {state['error']}")
        time.sleep(POLL_SECONDS)
    try:
        yield job
    finally:
        client.post(f"/fine_tuning/jobs/{job}/cancel", {})


def speed_mark(client: Client, job: str) -> tuple[float, int]:
    """Return the time at which the job had just reported, and the tokens it had trained by then."""
    first = client.get(f"/fine_tuning/jobs/{job}")["trained_tokens"]
    while (now := client.get(f"/fine_tuning/jobs/{job}")["trained_tokens"]) == first:
        time.sleep(POLL_SECONDS / 5)
    return time.perf_counter(), now


def speed_between(earlier: tuple[float, int], later: tuple[float, int]) -> float:
    """Return trained tokens a second between two marks."""
    return (later[1] - earlier[1]) / (later[0] - earlier[0])
