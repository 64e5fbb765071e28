"""How long a decode step takes: by adapters, kinds, rows, rank and length; and against its floor.

A step's time is the period from its end to the next one's, in the engine's own loop: the forward,
the sampling, the text, the callers' lines and whatever else happens between two tokens. Nothing is
drafted here: a step is of the rows that are named.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.serve.adapters import Stored
from benchmarks.serve.floor import Speeds, floor_of, weight_bytes
from benchmarks.serve.measure import say
from benchmarks.serve.world import LENGTH, RANK, ROWS, TOKENS, World, ready, start_engine
from benchmarks.sides import JSON, Side, rotated

DISTINCT = (1, 2, 4, 8, 16, 32)
RANKS = (4, 16, 64)
ROW_COUNTS = (1, 2, 4, 8, 16, 32)
LENGTHS = (64, 256, 1024)
BASE: Sequence[None] = (None,)


def ratios_of_steps(world: World, *, repeats: int, speeds: Speeds) -> JSON:
    """Time 32 rows over 8 adapters, and over all kinds that share a batch, against base rows."""
    batches: dict[str, Sequence[str | None]] = {
        "base": BASE,
        "mixed": world.names,
        "kinds": [kind.name for kind in world.kinds],
    }
    with start_engine(world, adapters=[*world.loras, *world.kinds], drafts=False) as engine:
        ready(engine)
        seconds = time_batches(world, engine, batches, rows=ROWS, repeats=repeats)
    for name, adapters in (("base", 0), ("mixed", len(world.loras))):
        floor = _floor(world, speeds, rows=ROWS, adapters=adapters)
        seconds[name] |= {"floor": floor}
        say(f"{name}: {seconds[name]['median'] / floor:.2f} of the floor")
    return {
        "rows": ROWS,
        "kinds": sorted(kind.name.removeprefix("kind-") for kind in world.kinds),
        "step_seconds": seconds,
        "mixed_over_base": seconds["mixed"]["median"] / seconds["base"]["median"],
        "kinds_over_base": seconds["kinds"]["median"] / seconds["base"]["median"],
    }


def time_batches(
    world: World,
    engine: Side,
    batches: Mapping[str, Sequence[str | None]],
    *,
    rows: int,
    repeats: int,
    length: int = LENGTH,
    tokens: int = TOKENS,
) -> dict[str, JSON]:
    """Return the steps of several batches, taken in turn: each one's names go round the rows."""
    medians: dict[str, list[float]] = {name: [] for name in batches}
    for round_ in range(repeats + 1):
        for name in rotated(list(batches), round_):
            owners = batches[name]
            adapters = [owners[row % len(owners)] for row in range(rows)]
            order = world.work.order(adapters, length=length, tokens=tokens)
            reply = engine.ask(order.posted())
            if round_ > 0:  # the first one loads adapters and meets new shapes
                medians[name].append(median(reply["periods"]))
    for name, values in medians.items():
        ms = " ".join(f"{1000 * value:.2f}" for value in values)
        say(f"step of {rows:>2} rows, {name:<14} {1000 * median(values):8.2f} ms   ({ms})")
    return {name: {"median": median(values), "repeats": values} for name, values in medians.items()}


def growth(world: World, *, repeats: int, speeds: Speeds) -> JSON:
    """Time steps as work grows: distinct adapters, rank, rows, length; floors beside them."""
    many = [*world.loras, *world.more_loras(max(DISTINCT) - len(world.loras), rank=RANK)]
    ranked = {rank: world.more_loras(8, rank=rank) for rank in RANKS if rank != RANK}
    ranked[RANK] = many[:8]
    everybody = [*many, *(adapter for rank in RANKS for adapter in ranked[rank])]
    with start_engine(world, adapters=everybody, drafts=False) as engine:
        ready(engine)
        table = {
            "distinct": time_batches(
                world,
                engine,
                {str(count): _names(many[:count]) for count in DISTINCT},
                rows=ROWS,
                repeats=repeats,
            ),
            "rank": time_batches(
                world,
                engine,
                {str(rank): _names(ranked[rank]) for rank in RANKS},
                rows=ROWS,
                repeats=repeats,
            ),
            "rows": {
                str(rows): time_batches(world, engine, {"base": BASE}, rows=rows, repeats=repeats)[
                    "base"
                ]
                for rows in ROW_COUNTS
            },
            "length": {
                str(length): time_batches(
                    world, engine, {"base": BASE}, rows=8, repeats=repeats, length=length
                )["base"]
                for length in LENGTHS
            },
        }
    for kind, rows in table.items():
        for size, figures in rows.items():
            figures["floor"] = _floor(
                world,
                speeds,
                rows={"rows": int(size), "length": 8}.get(kind, ROWS),
                length=int(size) if kind == "length" else LENGTH,
                adapters={"distinct": int(size), "rank": 8}.get(kind, 0),
                rank=int(size) if kind == "rank" else RANK,
            )
            ratio = figures["median"] / figures["floor"]
            say(f"{kind} {size}: {1000 * figures['median']:.2f} ms, {ratio:.2f} of the floor")
    return table


def _floor(
    world: World,
    speeds: Speeds,
    *,
    rows: int,
    adapters: int,
    length: int = LENGTH,
    rank: int = RANK,
) -> float:
    """Return the floor of a step in the middle of an answer, over weights as ours reads them."""
    return floor_of(
        world,
        speeds=speeds,
        rows=rows,
        length=length + TOKENS // 2,
        adapters=adapters,
        rank=rank,
        weight_bytes=weight_bytes(),
    )


def _names(adapters: Sequence[Stored]) -> list[str]:
    return [adapter.name for adapter in adapters]
