"""Slots give each row what its own adapter says, whoever came and went before."""

import random

import pytest
import torch

from models.nn.executors import Packed
from models.nn.slots import COLUMNS, FEWEST_SLOTS, WASTE, Slots
from models.nn.terms import AttentionTerm, HiddenTerm, LinearTerm, NormTerm, Terms

PLACES = {"a": (5, 7), "b": (7, 5), "c": (4, 4)}
DTYPE = torch.float64
"""Terms of some ten may cancel, which leaves float32 five digits."""


def make_terms(seed: int) -> Terms:
    """Return an adapter that acts at some of the places, in one or several of all ways."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=DTYPE)

    linears = {}
    for place, (outputs, inputs) in PLACES.items():
        if chance.random() < 0.3:
            continue
        rank = chance.randint(1, 9)
        low = chance.random() < 0.7
        linears[place] = LinearTerm(
            down=draw(rank, inputs) if low else None,
            up=draw(outputs, rank) if low else None,
            scale=chance.choice([1.0, 0.5, 3.0]),
            input_scale=draw(inputs) if chance.random() < 0.3 else None,
            output_scale=draw(outputs) if chance.random() < 0.3 else None,
            bias=draw(outputs) if chance.random() < 0.3 else None,
            weight=draw(outputs, inputs) if chance.random() < 0.2 else None,
        )
    hidden = HiddenTerm(draw(3, 4), draw(3), draw(4, 3), draw(4), "relu")
    return Terms(
        linears=linears,
        hiddens={"h": hidden} if chance.random() < 0.3 else {},
        norms={"n": NormTerm(draw(4))} if chance.random() < 0.3 else {},
    )


def expected(term: LinearTerm | None, weight_oi, x_i):
    if term is None:
        return weight_oi @ x_i
    x_i = x_i if term.input_scale is None else x_i * term.input_scale
    y_o = (weight_oi if term.weight is None else term.weight) @ x_i
    if term.down is not None and term.up is not None:
        y_o = y_o + term.scale * (term.up @ (term.down @ x_i))
    y_o = y_o if term.output_scale is None else y_o * term.output_scale
    return y_o if term.bias is None else y_o + term.bias


def check(slots: Slots, needed: dict[str, Terms]) -> None:
    bank, places = slots.hold(needed)
    assert needed.keys() <= places.keys()
    assert len(set(places.values())) == len(places)
    rows = [None, *needed, *needed, None]
    slots_t = torch.tensor([places[row] if row else 0 for row in rows])
    packed = Packed(bank, slots_t)
    for place, (outputs, inputs) in PLACES.items():
        weight_oi = torch.randn(outputs, inputs, dtype=DTYPE)
        x_ti = torch.randn(len(rows), inputs, dtype=DTYPE)
        scaled_ti = packed.linear_input(place, x_ti)
        y_to = packed.linear(place, scaled_ti, scaled_ti @ weight_oi.T)
        for row, owner in enumerate(rows):
            term = needed[owner].linears.get(place) if owner else None
            torch.testing.assert_close(y_to[row], expected(term, weight_oi, x_ti[row]))
    gain_td = packed.gain("n", torch.ones(4, dtype=DTYPE), rows=len(rows)).expand(len(rows), 4)
    x_td, y_td = torch.randn(2, len(rows), 4, dtype=DTYPE)
    changed_td = packed.hidden("h", x_td, y_td)
    for row, owner in enumerate(rows):
        norm = needed[owner].norms.get("n") if owner else None
        torch.testing.assert_close(
            gain_td[row], torch.ones(4, dtype=DTYPE) if norm is None else norm.gain
        )
        told = needed[owner].hiddens.get("h") if owner else None
        same = torch.allclose(changed_td[row], y_td[row])
        assert same is (told is None)


@pytest.mark.parametrize("seed", range(4))
def test_rows_get_their_own_adapter_whoever_was_there_before(seed):
    chance, slots = random.Random(seed), Slots()
    known = {f"adapter {n}": make_terms(100 * seed + n) for n in range(12)}
    for _ in range(25):
        if chance.random() < 0.2:
            slots.drop(chance.choice(list(known)))
        names = chance.sample(list(known), chance.randint(1, 6))
        check(slots, {name: known[name] for name in names})


def low_rank(rank: int, *, fill: float = 1.0) -> Terms:
    return Terms(linears={"a": LinearTerm(torch.full((rank, 7), fill), torch.ones(5, rank))})


def test_who_stays_is_not_copied_and_a_newcomer_takes_a_gap():
    slots = Slots()
    first, second = low_rank(8), low_rank(8)
    bank, before = slots.hold({"x": first, "y": second})
    stored = bank.linears["a"].down_ri
    assert stored is not None
    slots.drop("x")
    bank, after = slots.hold({"y": second, "z": low_rank(6, fill=2.0)})
    moved = bank.linears["a"].down_ri
    assert moved is not None
    assert moved.data_ptr() == stored.data_ptr()
    assert after["y"] == before["y"]
    assert moved[:6].eq(2).all()
    assert not moved[6:8].any() or bank.linears["a"].layout.columns[1][0] == -1
    assert moved[8:].eq(1).all()


def test_room_grows_when_it_is_full_and_shrinks_to_who_is_needed():
    slots = Slots()
    many = {f"n{n}": low_rank(128, fill=float(n)) for n in range(COLUMNS // 128 + 2)}
    bank, places = slots.hold(many)
    down_ri = bank.linears["a"].down_ri
    assert down_ri is not None
    assert len(down_ri) == 128 * len(many) > COLUMNS
    slots_t = torch.tensor([places["n3"]])
    y_to = Packed(bank, slots_t).linear("a", torch.ones(1, 7), torch.zeros(1, 5))
    assert y_to.eq(3.0 * 7 * 128).all()
    last = max(places, key=lambda name: int(name[1:]))
    for _ in range(2):
        bank, _ = slots.hold({last: many[last]})
    down_ri = bank.linears["a"].down_ri
    assert down_ri is not None
    assert len(down_ri) == 128


def test_a_slot_behind_the_last_row_of_a_table_changes_nothing():
    scaling = {
        f"s{n:02}": Terms(linears={"a": LinearTerm(output_scale=torch.full((5,), n, dtype=DTYPE))})
        for n in range(FEWEST_SLOTS - 1)
    }
    down, up = torch.ones(2, 7, dtype=DTYPE), torch.ones(5, 2, dtype=DTYPE)
    last = {"t": Terms(linears={"a": LinearTerm(down, up)})}
    slots = Slots()
    check(slots, scaling)
    check(slots, scaling | last)


BOTTLENECK = HiddenTerm(*(torch.ones(size) for size in ((16, 4), (16,), (4, 16), (4,))), "gelu")
SECOND = AttentionTerm(torch.ones(1, 6, 4), torch.ones(1, 6, 4), torch.ones(2))


@pytest.mark.parametrize(
    "terms",
    [
        low_rank(8),
        Terms(linears={"a": LinearTerm(output_scale=torch.ones(5))}),
        Terms(hiddens={"h": BOTTLENECK}),
        Terms(attentions={0: SECOND}),
        Terms(norms={"n": NormTerm(torch.ones(4))}),
    ],
    ids=["low rank", "vectors", "bottleneck", "attention", "norm"],
)
def test_who_is_not_needed_leaves_whatever_it_is_made_of(terms: Terms):
    slots = Slots()
    for number in range(50):
        bank, places = slots.hold({f"n{number}": terms})
        assert len(slots) <= WASTE
        assert max(places.values()) < bank.slots <= WASTE + 1
    for bottleneck in bank.hiddens.get("h", ()):
        assert len(bottleneck.down_md) <= WASTE * len(BOTTLENECK.down)
    for second in bank.attentions.values():
        assert second.keys_kph.shape[1] <= 1 + WASTE * SECOND.keys.shape[1]


def test_one_that_replaces_the_network_shares_no_slot():
    with pytest.raises(ValueError, match="whole weights"):
        Slots().hold({"x": Terms(weights={"model.norm.weight": torch.ones(4)})})
