"""Steps that follow each other by themselves, against as many that are asked for one by one."""

from array import array
from collections.abc import Sequence
from ctypes import c_int32

import pytest
import torch

from models.nn.kernels.native import library, reason
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.step import Form, Hidden, Until
from tests.models.nn.kernels.native.stepping import (
    FORMS,
    POSITIONS,
    World,
    drawn_ids,
    make_backbone,
)

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

SLOTS = (3, 0, 2)
START, STEPS = 20, 6
NAMED = [2, 0, 1]
"""Rows in another order than the stream's."""


def begin(world: World) -> tuple[Hidden, list[int]]:
    """Return a step of one token a row, and the tokens that the next one reads."""
    ids = drawn_ids(60)
    world.step([Run(slot, 0, ids[slot : slot + START]) for slot in SLOTS])
    runs = [Run(slot, START, [ids[slot + START]], decodes=True) for slot in SLOTS]
    hidden = world.step(runs, likeliest=NAMED)
    return hidden, in_stream(hidden.likeliest(NAMED))


def in_stream(tokens: Sequence[int]) -> list[int]:
    """Return the tokens of the named rows in the stream's order."""
    return [tokens[NAMED.index(row)] for row in range(len(NAMED))]


def go_on(hidden: Hidden, ids: list[int], until: Until, place: int = START + 1) -> list[list[int]]:
    return [list(found) for found in hidden.go_on(ids, [place] * len(SLOTS), until=until)]


def one_by_one(world: World) -> tuple[list[list[int]], torch.Tensor]:
    """Return what the named rows draw in each step, and the last step's logits."""
    hidden, ids = begin(world)
    found = []
    for place in range(START + 1, START + 1 + STEPS):
        found += go_on(hidden, ids, Until(), place)
        ids = in_stream(found[-1])
    return found, hidden.logits(range(3)).clone()


@pytest.mark.parametrize("form", FORMS)
def test_they_are_the_same_to_the_bit(form: Form) -> None:
    world = World.of(make_backbone(), form=form)
    expected, logits = one_by_one(world)
    assert len({tuple(tokens) for tokens in expected}) > 1
    hidden, ids = begin(world)
    assert go_on(hidden, ids, Until(STEPS)) == expected
    assert list(hidden.likeliest(NAMED)) == expected[-1]
    assert torch.equal(hidden.logits(range(3)), logits)
    more = go_on(hidden, in_stream(expected[-1]), Until(2), START + 1 + STEPS)
    assert more != expected[:2]


def test_they_end_behind_an_end_of_any_row_when_they_are_called_and_in_time() -> None:
    world = World.of(make_backbone())
    expected, _ = one_by_one(world)
    drawn = {token for tokens in expected for token in tokens}
    never = next(token for token in range(len(drawn) + 1) if token not in drawn)
    for row in range(3):
        end = expected[2][row]
        first = next(n for n, tokens in enumerate(expected) if end in tokens)
        hidden, ids = begin(world)
        found = go_on(hidden, ids, Until(STEPS, ends=array("q", [never, end])))
        assert found == expected[: first + 1]
        hidden, ids = begin(world)
        assert go_on(hidden, ids, Until(STEPS, called=c_int32(1))) == expected[:1]
        hidden, ids = begin(world)
        assert go_on(hidden, ids, Until(STEPS, seconds=0.0)) == expected[:1]


def test_they_end_where_a_row_has_no_numbers() -> None:
    plain = World.of(make_backbone())
    expected, _ = one_by_one(plain)
    read = {*drawn_ids(60), *begin(plain)[1]}
    poison = next(token for tokens in expected for token in tokens if token not in read)
    first = next(n for n, tokens in enumerate(expected) if poison in tokens)

    def spoil(network: torch.nn.Module) -> None:
        network.get_input_embeddings().weight[poison] = torch.nan  # type: ignore[operator]

    hidden, ids = begin(World.of(make_backbone(change=spoil)))
    found = go_on(hidden, ids, Until(STEPS))
    assert found[:-1] == expected[: first + 1]
    assert found[-1] == [
        -1 if before == poison else token
        for before, token in zip(expected[first], expected[first + 1], strict=True)
    ]


def test_they_stay_in_their_slots_and_need_all_rows() -> None:
    world = World.of(make_backbone())
    hidden, ids = begin(world)
    last = POSITIONS - STEPS
    assert len(go_on(hidden, ids, Until(STEPS), last)) == STEPS
    with pytest.raises(ValueError, match=f"{POSITIONS} positions"):
        go_on(hidden, ids, Until(STEPS), last + 1)
    some = world.step([Run(slot, 0, [5]) for slot in SLOTS], likeliest=[1])
    for until in (Until(2), Until(0)):
        with pytest.raises(ValueError, match="all rows"):
            go_on(some, ids, until)
    assert len(go_on(some, ids, Until())) == 1
