"""The ratios against peers: the same requests, one side at a time, and their tokens judged."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Any

from benchmarks.failures import Failures
from benchmarks.serve.equality import Judge
from benchmarks.serve.measure import Measured, figures_of, say, take_turns
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
NAMING = frozenset({OURS, INT8, UNDRAFTED})
"""Sides that are asked for token ids apart, since it costs them something."""
INEXACT = frozenset({INT8, "llamacpp-q8_0"})
"""Sides with other weights than the oracle's: their tokens are counted, not judged."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Sides that are given the same orders."""

    name: str
    sides: Mapping[str, Side]
    make: Callable[[], Order]
    least: int = 1
    """Repeats, however few are asked for."""


Opener = Callable[[Side], Side]
"""Keeps a side open until a part's contests are over."""


Part = Callable[[World, Opener, Mapping[str, Peer]], list[Contest]]
"""Opens sides, vLLM as these peers by label, and returns the contests between them."""


def against_peers(
    world: World,
    part: Part,
    *,
    failures: Failures,
    repeats: int,
    vllms: Mapping[str, Peer],
    patience: float = inf,
) -> JSON:
    """Run a part's contests, once all their sides, which load side by side, are there."""
    found: JSON = {}
    with ExitStack() as stack:
        sides: list[Side] = []

        def open_side(side: Side) -> Side:
            sides.append(stack.enter_context(side))
            return side

        oracle = open_side(start_oracle(world))
        contests = part(world, open_side, vllms)
        ready(*sides)
        judge = Judge(oracle)
        for contest in contests:
            with failures.guard(contest.name):
                found[contest.name] = compare(
                    contest.name,
                    contest.sides,
                    judge=judge,
                    make=contest.make,
                    repeats=max(contest.least, repeats),
                    patience=patience,
                )
        for side in sides:
            side.dismiss()
    return found


def with_adapters(world: World, open_side: Opener, vllms: Mapping[str, Peer]) -> list[Contest]:
    """Have 32 requests over 8 adapters for vLLM and PEFT's mixed batch, one for vLLM."""
    ours = open_side(start_engine(world, adapters=world.loras))
    theirs = open_vllms(world, open_side, vllms, adapters=world.folders)
    peft = open_side(start_peer(world, hf_peft.PEER, label="peft", adapters=world.folders))
    return [
        Contest(
            name="mixed",
            sides={OURS: ours, **theirs, "peft": peft},
            make=lambda: over_adapters(world, ROWS),
        ),
        Contest(
            name="single",
            sides={OURS: ours, **theirs},
            make=lambda: over_adapters(world, 1),
        ),
    ]


def without_adapters(
    world: World, open_side: Opener, vllms: Mapping[str, Peer], *, quick: bool
) -> list[Contest]:
    """Have 32 requests for vLLM without LoRA, one for llama.cpp on bf16 weights.

    Unless `quick`, the one also goes to both in 8 bits and to an engine that drafts nothing.
    """
    ours = open_side(start_engine(world, adapters=[]))
    theirs = open_vllms(world, open_side, vllms, adapters={})
    singles = {
        f"llamacpp-{form}": open_side(
            start_peer(world, llamacpp.PEER, label=f"llamacpp-{form}", format=form)
        )
        for form in (("bf16",) if quick else tuple(llamacpp.FORMATS))
    }
    if not quick:
        singles[INT8] = open_side(start_engine(world, adapters=[], quantization="int8"))
        singles[UNDRAFTED] = open_side(start_engine(world, adapters=[], drafts=False))
    return [
        Contest(
            name="base",
            sides={OURS: ours, **theirs},
            make=lambda: over_base(world, ROWS),
        ),
        Contest(
            name="single_base",
            sides={OURS: ours, **singles},
            make=lambda: over_base(world, 1),
            least=5,
        ),
    ]


def open_vllms(
    world: World, open_side: Opener, vllms: Mapping[str, Peer], *, adapters: Mapping[str, str]
) -> dict[str, Side]:
    """Open vLLM, in each of its ways; without adapters, without its support for LoRA."""
    what = "-lora" if adapters else ""
    return {
        label: open_side(
            start_peer(world, peer, label=label + what, adapters=adapters, rank=RANK, rows=ROWS)
        )
        for label, peer in vllms.items()
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
    patience: float = inf,
) -> JSON:
    """Measure sides on one kind of order, and have their first answers judged."""
    measured, orders = take_turns(what, sides, make=make, repeats=repeats, patience=patience)
    first = orders[0]
    tokens = {name: side.replies[0]["tokens"] for name, side in measured.items()}
    named = {
        name: sides[name].ask(first.posted(with_ids=True, stream=False))
        for name in sides
        if name in NAMING
    }
    tokens |= {name: reply["tokens"] for name, reply in named.items()}
    return {
        "sides": figures_of(measured),
        "texts_as_when_timed": _same_texts(named[OURS], measured[OURS]),
        **judge_all(what, judge, first, tokens),
    }


def judge_all(
    what: str, judge: Judge, order: Order, tokens: Mapping[str, list[list[int]]]
) -> dict[str, Any]:
    """Return the verdict on each side's answers, and who was wrong."""
    verdicts = judge.verdicts(order, tokens)
    for name, verdict in verdicts.items():
        say(
            f"{what:<12} {name:<14} {verdict.likeliest} of {verdict.tokens} tokens likeliest, "
            f"worst {verdict.worst:.3f} behind, {verdict.allowed:.3f} allowed"
        )
    wrong = [name for name, verdict in verdicts.items() if not verdict.right]
    return {
        "tokens": {name: verdict.figures() for name, verdict in verdicts.items()},
        "wrong": sorted(set(wrong) - INEXACT),
    }


def ratio(figures: JSON, peer: str) -> float:
    """Return our throughput over a peer's."""
    sides = figures["sides"]
    over: float = sides[OURS]["tokens_per_second"] / sides[peer]["tokens_per_second"]
    return over


def _same_texts(named: JSON, timed: Measured) -> str:
    """Say how many texts came again when token ids were asked for."""
    pairs = list(zip(named["texts"], timed.replies[0]["texts"], strict=True))
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
