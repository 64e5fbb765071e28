"""The ratios against peers: the same requests, one side at a time, and their tokens judged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import inf

from benchmarks.failures import Failures
from benchmarks.serve.equality import Judge, Verdict
from benchmarks.serve.measure import figures_of, say, take_turns
from benchmarks.serve.peers import hf_oracle, hf_peft, llamacpp
from benchmarks.serve.peers.peer import Peer
from benchmarks.serve.work import Order, in_turn
from benchmarks.serve.world import (
    LENGTH,
    RANK,
    ROWS,
    TOKENS,
    World,
    ready,
    start_engine,
    start_peer,
)
from benchmarks.sides import JSON, Side

OURS = "graftwork"
INT8 = "graftwork-int8"
UNDRAFTED = "graftwork-undrafted"
PEFT = "peft"
NAMING = frozenset({OURS, INT8, UNDRAFTED})
"""Sides that are asked for token ids apart, since it costs them something."""
INEXACT = frozenset({INT8, "llamacpp-q8_0"})
"""Sides with other weights than the oracle's: their tokens are counted, not judged."""
LEAST_SINGLES = 5
"""One request is soon answered, and how fast depends on its text."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Sides, by their names in a part, that are given the same orders."""

    name: str
    sides: Sequence[str]
    make: Callable[[], Order]
    least: int = 1
    """Repeats, however few are asked for."""


Starts = Mapping[str, Callable[[], Side]]
"""How to start sides, by name."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Contests between sides that load side by side."""

    name: str
    starts: Starts
    contests: Sequence[Contest]


def against_peers(
    world: World, part: Part, *, failures: Failures, repeats: int, patience: float = inf
) -> JSON:
    """Run a part's contests, each between those of its sides that could be started."""
    found: JSON = {}
    with ExitStack() as stack:
        oracle = stack.enter_context(start_oracle(world))
        sides = open_sides(part, stack, failures)
        ready(oracle)
        judge = Judge(oracle)
        for contest in part.contests:
            with failures.guard(contest.name):
                found[contest.name] = compare(
                    contest.name,
                    {name: sides[name] for name in contest.sides if name in sides},
                    judge=judge,
                    make=contest.make,
                    repeats=max(contest.least, repeats),
                    failures=failures,
                    patience=patience,
                )
        for side in (oracle, *sides.values()):
            side.dismiss()
    return found


def open_sides(part: Part, stack: ExitStack, failures: Failures) -> dict[str, Side]:
    """Start a part's sides and wait until they have loaded; those that cannot are left out."""
    sides: dict[str, Side] = {}
    for name, start in part.starts.items():
        with failures.guard(f"{part.name}: {name}"):
            sides[name] = stack.enter_context(start())
    for name, side in list(sides.items()):
        with failures.guard(f"{part.name}: {name}"):
            ready(side)
            continue
        del sides[name]
    return sides


def with_adapters(world: World, vllms: Mapping[str, Peer], *, quick: bool) -> Part:
    """Have 32 requests over 8 adapters for vLLM and PEFT's mixed batch, one for vLLM.

    Unless `quick`, the one also goes to an engine that drafts nothing.
    """
    starts = {
        OURS: partial(start_engine, world, adapters=world.loras),
        **start_vllms(world, vllms, adapters=world.folders),
        PEFT: partial(start_peer, world, hf_peft.PEER, label=PEFT, adapters=world.folders),
    }
    undrafted = {
        UNDRAFTED: partial(start_engine, world, adapters=world.loras, drafts=False),
    }
    return Part(
        name="adapters",
        starts=starts if quick else starts | undrafted,
        contests=[
            Contest(
                name="mixed",
                sides=[OURS, *vllms, PEFT],
                make=lambda: over_adapters(world, ROWS),
            ),
            Contest(
                name="single",
                sides=[OURS, UNDRAFTED, *vllms],
                make=lambda: over_adapters(world, 1),
                least=LEAST_SINGLES,
            ),
        ],
    )


def without_adapters(world: World, vllms: Mapping[str, Peer], *, quick: bool) -> Part:
    """Have 32 requests for vLLM without LoRA, one for llama.cpp on bf16 weights.

    Unless `quick`, the one also goes to both in 8 bits and to an engine that drafts nothing.
    """
    llamacpps = {
        f"llamacpp-{form}": partial(
            start_peer, world, llamacpp.PEER, label=f"llamacpp-{form}", format=form
        )
        for form in (("bf16",) if quick else tuple(llamacpp.FORMATS))
    }
    further = {
        INT8: partial(start_engine, world, adapters=[], quantization="int8"),
        UNDRAFTED: partial(start_engine, world, adapters=[], drafts=False),
    }
    starts = {
        OURS: partial(start_engine, world, adapters=[]),
        **start_vllms(world, vllms, adapters={}),
        **llamacpps,
    }
    return Part(
        name="base",
        starts=starts if quick else starts | further,
        contests=[
            Contest(name="base", sides=[OURS, *vllms], make=lambda: over_base(world, ROWS)),
            Contest(
                name="single_base",
                sides=[OURS, *llamacpps, *further],
                make=lambda: over_base(world, 1),
                least=LEAST_SINGLES,
            ),
        ],
    )


def start_vllms(
    world: World, vllms: Mapping[str, Peer], *, adapters: Mapping[str, str]
) -> dict[str, Callable[[], Side]]:
    """Return how to start vLLM, in each of its ways; without adapters, without LoRA."""
    what = "-lora" if adapters else ""
    return {
        name: partial(
            start_peer, world, peer, label=name + what, adapters=adapters, rank=RANK, rows=ROWS
        )
        for name, peer in vllms.items()
    }


def start_oracle(world: World) -> Side:
    """Start the network that reads all answers."""
    return start_peer(world, hf_oracle.PEER, label="oracle", adapters=world.folders)


def over_adapters(world: World, rows: int) -> Order:
    """Return a request a row, over all adapters in turn."""
    return world.work.order(in_turn(world.names, rows), length=LENGTH, tokens=TOKENS)


def over_base(world: World, rows: int) -> Order:
    """Return a request a row without adapters."""
    return world.work.order([None] * rows, length=LENGTH, tokens=TOKENS)


def compare(
    what: str,
    sides: Mapping[str, Side],
    *,
    judge: Judge,
    make: Callable[[], Order],
    repeats: int,
    failures: Failures,
    patience: float = inf,
) -> JSON:
    """Measure sides on one kind of order, and have their first answers judged.

    Ours name no tokens where they are timed. They are asked once more for each order, by name, and
    must say the same.
    """
    measured, orders = take_turns(
        what, sides, make=make, repeats=repeats, failures=failures, patience=patience
    )
    tokens, again = {}, {}
    for name, timed in measured.items():
        replies = timed.replies
        if name in NAMING:
            replies = [sides[name].ask(each.posted(with_ids=True, stream=False)) for each in orders]
            again[name] = _same_texts(replies, timed.replies)
        tokens[name] = replies[0]["tokens"]
    judged = judge_all(what, judge, orders[0], tokens)
    changed = [name for name, (same, asked) in again.items() if same < asked]
    return {
        "sides": figures_of(measured),
        "texts_as_when_timed": {name: f"{same} of {of}" for name, (same, of) in again.items()},
        "tokens": {name: verdict.figures() for name, verdict in judged.items()},
        "wrong": wrong_ones(judged, changed),
    }


def judge_all(
    what: str, judge: Judge, order: Order, tokens: Mapping[str, list[list[int]]]
) -> dict[str, Verdict]:
    """Return the verdict on each side's answers."""
    verdicts = judge.verdicts(order, tokens)
    for name, verdict in verdicts.items():
        say(
            f"{what:<12} {name:<14} {verdict.likeliest} of {verdict.tokens} tokens likeliest, "
            f"worst {verdict.worst:.3f} behind; {verdict.allowed_others} others and "
            f"{verdict.allowed:.3f} allowed"
        )
    return verdicts


def wrong_ones(verdicts: Mapping[str, Verdict], changed: Iterable[str]) -> list[str]:
    """Return who gave tokens that are not right, or others when they were asked again."""
    judged = {name for name, verdict in verdicts.items() if not verdict.right}
    return sorted((judged - INEXACT) | set(changed))


def ratio(figures: JSON, peer: str) -> float:
    """Return our throughput over a peer's."""
    sides = figures["sides"]
    over: float = sides[OURS]["tokens_per_second"] / sides[peer]["tokens_per_second"]
    return over


def _same_texts(named: Sequence[JSON], timed: Sequence[JSON]) -> tuple[int, int]:
    """Return how many texts came again when tokens were asked for, and how many there are."""
    pairs = [
        pair
        for mine, before in zip(named, timed, strict=True)
        for pair in zip(mine["texts"], before["texts"], strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)
