"""What it costs to bring an adapter in, and what it costs those who are being served meanwhile."""

from statistics import median

from benchmarks.serve.adapters import Stored
from benchmarks.serve.gaps import BUSY, QUIET, percentile
from benchmarks.serve.measure import say
from benchmarks.serve.work import in_turn
from benchmarks.serve.world import LENGTH, RANK, World, ready, start_engine
from benchmarks.sides import JSON, Side
from models.adapter_files import TENSORS

PROMPT = 4
"""Tokens of the prompt whose first answer is waited for."""
OTHERS = 8
"""Rows that decode while others are swapped."""
PHASES, PHASE_SECONDS = 8, 1.5
ANSWER = 1900
"""Tokens that the others are asked for: more than the phases need."""


def over_one_engine(world: World, *, repeats: int) -> JSON:
    """Measure first tokens, then the gaps of others."""
    with start_engine(world, adapters=world.loras) as engine:
        ready(engine)
        return {
            "first": first_tokens(world, engine, repeats=4 * repeats),
            "others": gaps(world, engine, rounds=max(1, repeats - 2)),
        }


def first_tokens(world: World, engine: Side, *, repeats: int) -> JSON:
    """Time cold adapters from the request to the first token, against copying their bytes.

    In it is all that a stored version needs: its manifest and files fetched and hashed, read,
    checked number by number and laid out, then the prompt's forward, sampling and the line. The
    same request once more, with the adapter in memory, says how much of it is the latter.
    """
    fresh = world.more_loras(repeats + 1, rank=RANK)
    prompt = world.work.prompts(1, length=PROMPT)[0]
    replies = [engine.ask(first_question(adapter, prompt)) for adapter in fresh]
    seconds = {what: [reply[what] for reply in replies[1:]] for what in ("copy", "cold", "warm")}
    for what, values in seconds.items():
        ms = " ".join(f"{1000 * value:.1f}" for value in values)
        say(f"first token, {what:<6} {1000 * median(values):8.1f} ms   ({ms})")
    return {
        "bytes": fresh[0].bytes,
        "seconds": seconds,
        "swap_over_copy": median(seconds["cold"]) / median(seconds["copy"]),
    }


def gaps(world: World, engine: Side, *, rounds: int) -> JSON:
    """Compare the gaps between tokens of other rows in quiet phases and in ones full of swaps.

    Every phase is one of a run in which two versions are loaded, replaced and unloaded without a
    pause, or of the same length without; they take turns, for a cache grows all the while.
    """
    versions = world.more_loras(2, rank=RANK)
    found: dict[str, list[float]] = {QUIET: [], BUSY: []}
    swaps = wrong = 0
    probe, texts = choose_probe(world, engine, versions)
    for _ in range(rounds):
        order = world.work.order(in_turn(world.names, OTHERS), length=LENGTH, tokens=ANSWER)
        plan = {"probe": probe, "swapped": texts, "phases": PHASES, "seconds": PHASE_SECONDS}
        reply = engine.ask(order.posted(do="churn", **plan))
        swaps, wrong = swaps + reply["swaps"], wrong + reply["wrong"]
        for name, values in reply["gaps"].items():
            found[name] += values
    if not all(found.values()):
        raise RuntimeError("The rows ended before a quiet and a busy phase were over.")
    tails = {
        name: {
            "p50": percentile(values, 0.5),
            "p99": percentile(values, 0.99),
            "count": len(values),
        }
        for name, values in found.items()
    }
    for name, tail in tails.items():
        say(f"gaps, {name}: p50 {1000 * tail['p50']:.1f} ms, p99 {1000 * tail['p99']:.1f} ms")
    say(f"{swaps} swaps, {wrong} wrong answers")
    return {
        "gaps": tails,
        "swaps": swaps,
        "wrong": ["a swapped adapter"] if wrong else [],
        "swap_gap": tails[BUSY]["p99"] / tails[QUIET]["p99"],
    }


def choose_probe(
    world: World, engine: Side, versions: list[Stored]
) -> tuple[list[int], dict[str, str]]:
    """Return a prompt to which all these versions answer differently, and the answers by digest."""
    for prompt in world.work.prompts(200, length=PROMPT):
        texts = {}
        for version in versions:
            reply = engine.ask(first_question(version, prompt))
            texts[version.digest] = reply["text"]
        if len(set(texts.values())) == len(texts) and all(texts.values()):
            return prompt, texts
    raise RuntimeError("No prompt tells these adapters apart.")


def first_question(adapter: Stored, prompt: list[int]) -> JSON:
    """Return the question how long the first token of an adapter takes."""
    file = str(adapter.folder / TENSORS)
    return {"do": "first", "digest": adapter.digest, "file": file, "prompt": prompt}
