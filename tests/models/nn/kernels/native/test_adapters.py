"""Adapters in the C++ step: every method there is, against the network in float32 and its own bits.

Nothing here names a method: what shares a batch must do so here too.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.kernels.native import Library, library, reason
from models.nn.kernels.native.adapter import StepAdapter, prepare
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.model import Unsuited
from models.nn.kernels.native.step import Form
from models.nn.low_rank import LowRank
from models.nn.methods import METHODS, parse_method
from models.nn.methods.base import Method
from models.nn.methods.prefix import Prefix as PrefixTuning
from models.nn.prefix import Prefix
from models.nn.terms import LinearTerm, Terms
from tests.models.nn.families import compile_prefix, random_tensors, run_terms
from tests.models.nn.kernels.native.comparing import needs_avx512
from tests.models.nn.kernels.native.stepping import (
    FORMS,
    SLOTS,
    VECTORS,
    Row,
    World,
    advance,
    distance,
    drawn_ids,
    loaded,
    make_backbone,
)

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

IDS = drawn_ids(40, seed=5)
BOUNDS = [0, 25, 37, 38, 39, 40]


def mild(method: Method) -> Method:
    """Return a method by which rounding is not made large, as some are in the network too.

    A low-rank method adds half: by the default's 8, an adapter that is rounded once to bfloat16
    moves logits by a fifth, in the network in float32 too. The network of a prefix is wider than
    the prefix is long: where it is not, its last layer may be large, and keys were up to 75 where
    others' are up to 10.
    """
    if isinstance(method, LowRank):
        return method.model_copy(update={"alpha": 0.5 * method.alpha / method.scale})
    if isinstance(method, PrefixTuning):
        wide = max(method.hidden_size, 2 * method.prefix_length)
        return method.model_copy(update={"hidden_size": wide})
    return method


CASES = {
    f"{kind}-{index}": mild(cls(**example))
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
    if cls.shares_batch
} | {
    "low rank, ragged": parse_method({"type": "lora", "rank": 3, "alpha": 5.0}),
    "low rank, wide": parse_method({"type": "lora", "rank": 40}),
    "low rank, head": parse_method({"type": "lora", "rank": 4, "target_modules": ["lm_head"]}),
    "input scales": parse_method(
        {
            "type": "ia3",
            "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
            "feedforward_modules": ["q_proj", "o_proj", "up_proj", "down_proj"],
        }
    ),
    **{
        f"bottleneck, {activation}": parse_method(
            {"type": "bottleneck", "size": 20, "activation": activation}
        )
        for activation in ("gelu", "relu", "silu", "tanh")
    },
}


SHARING = ["lora-0", "bottleneck-0", "ia3-0"]


@dataclass(frozen=True)
class Prepared:
    """An adapter, and what its slots hold before its rows begin."""

    adapter: StepAdapter
    prefix: Prefix | None

    def row(self, world: World, slot: int) -> Row:
        before = self.prefix.rows if self.prefix else 0
        if self.prefix:
            for caches, sides in (
                (world.keys, self.prefix.keys),
                (world.values, self.prefix.values),
            ):
                for cache, side in zip(caches, sides, strict=True):
                    cache[slot, :, :before] = side
        return Row(slot, IDS, self.adapter, before)


@pytest.fixture(scope="module", params=VECTORS)
def world(request: pytest.FixtureRequest) -> World:
    return World.of(make_backbone("biased, tied"), form=request.param)


@pytest.fixture(scope="module")
def exact() -> Backbone:
    return make_backbone("biased, tied", dtype=torch.float32)


@pytest.fixture(scope="module")
def prepared(world: World) -> dict[str, Prepared]:
    found = {}
    for case, method in CASES.items():
        terms = terms_of(method, world.backbone)
        acting = replace(terms, prompt=None, keys_values={})
        adapter = prepare(acting, world.backbone.shape, loaded())
        found[case] = Prepared(adapter, compile_prefix(world.backbone, terms))
    return found


def terms_of(method: Method, backbone: Backbone) -> Terms:
    return Terms.of(method, random_tensors(method, backbone, seed=2), backbone.base)


def alone(world: World, one: Prepared) -> Tensor:
    return advance(world, [one.row(world, 0)], [BOUNDS])[0]


@pytest.mark.parametrize("case", CASES)
def test_adapter_acts_as_in_the_network(
    world: World, exact: Backbone, prepared: dict[str, Prepared], case: str
) -> None:
    expected = run_terms(exact, torch.tensor(IDS), terms=terms_of(CASES[case], exact))
    own = terms_of(CASES[case], world.backbone)
    eager = distance(run_terms(world.backbone, torch.tensor(IDS), terms=own).float(), expected)
    assert distance(alone(world, prepared[case]), expected) < 1.5 * eager + 0.005


def test_all_kinds_in_one_step_give_what_each_gives_alone(
    world: World, prepared: dict[str, Prepared]
) -> None:
    expected = {case: alone(world, one) for case, one in prepared.items()}
    cases = list(prepared)
    for first in range(0, len(cases), SLOTS - 1):
        chosen = cases[first : first + SLOTS - 1]
        rows = [prepared[case].row(world, slot) for slot, case in enumerate(chosen)]
        rows.append(Row(SLOTS - 1, IDS))
        bounds = [BOUNDS, [0, 40], [0, 1, 39, 40], [0, 20, 40]][: len(rows)]
        for case, found in zip(chosen, advance(world, rows, bounds), strict=False):
            assert torch.equal(found, expected[case]), case


def test_threads_and_groups_do_not_change_a_bit(
    world: World, prepared: dict[str, Prepared]
) -> None:
    before = torch.get_num_threads()
    for one in prepared.values():
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            rows = [one.row(world, 2), Row(0, IDS), one.row(world, 1)]
            results += advance(world, rows, [BOUNDS, [0, 40], BOUNDS])[::2]
        torch.set_num_threads(before)
        assert all(torch.equal(result, results[0]) for result in results[1:])


@needs_avx512
@pytest.mark.parametrize("case", ["lora-0", "bottleneck-0", "ia3-0", "llama_adapter-0"])
def test_tiles_carry_adapters_too(world: World, prepared: dict[str, Prepared], case: str) -> None:
    tiles = World.of(world.backbone, form="emulated")
    found = advance(tiles, [prepared[case].row(tiles, 0)], [BOUNDS])[0]
    assert distance(found, alone(world, prepared[case])) < 0.02


@needs_avx512
def test_tiles_give_every_kind_in_company_and_in_chunks_what_it_gets_alone(
    world: World, prepared: dict[str, Prepared]
) -> None:
    """Whoever is beside, for others' rows are zeros in the tiles of an adapter's terms."""
    tiles = World.of(world.backbone, form="emulated")
    drawn = [37, 38, 39, 40]

    def row(case: str, slot: int) -> Row:
        return replace(prepared[case].row(tiles, slot), decodes=True)

    cases = list(prepared)
    for first in range(0, len(cases), SLOTS - 1):
        chosen = cases[first : first + SLOTS - 1]
        rows = [row(case, slot) for slot, case in enumerate(chosen)] + [Row(SLOTS - 1, IDS)]
        bounds = [[0, 25, *drawn], [0, *drawn], [0, 9, 35, *drawn]][: len(chosen)]
        together = advance(tiles, rows, [*bounds, [0, 11, 12, 40]])
        for case, found in zip(chosen, together, strict=False):
            assert torch.equal(found, advance(tiles, [row(case, 0)], [[0, *drawn]])[0]), case


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("ranks", "is_possible"),
    [((16, 16), True), ((3, 3), True), ((40, 40), True), ((3, 4), False), ((0, 16), False)],
)
def test_panels_of_gate_and_up_by_turns_change_no_bit(
    world: World, form: Form, ranks: tuple[int, int], is_possible: bool
) -> None:
    stepping = World.of(world.backbone, form=form)
    shape = world.backbone.shape
    generator = torch.Generator().manual_seed(6)
    linears = {}
    for place, (outputs, inputs) in shape.linears.items():
        rank = ranks["up_proj" in place] if place.endswith(("gate_proj", "up_proj")) else 5
        down, up = (
            0.1 * torch.randn(size, generator=generator)
            for size in ((rank, inputs), (outputs, rank))
        )
        if rank:
            linears[place] = LinearTerm(down=down, up=up, scale=0.5)
    found = []
    for best in ("avx512", "amx"):
        packing = Library(loaded().handle, forms=(best, *loaded().forms))
        adapter = prepare(Terms(linears=linears), shape, packing)
        _, _, _, _, gate, up, _ = adapter.layers[1].places
        by_turns = up.up - (gate.up or 0) == 32 * up.rank
        assert by_turns == (best == "amx" and is_possible)
        rows = [Row(0, IDS, adapter), Row(1, IDS), Row(2, IDS, adapter)]
        found.append(advance(stepping, rows, [BOUNDS, [0, 40], [0, 39, 40]]))
    assert all(map(torch.equal, *found))


@needs_avx512
def test_tiles_are_shaped_anew_behind_an_adapters_own_attention(
    world: World, prepared: dict[str, Prepared]
) -> None:
    tiles = World.of(world.backbone, form="emulated")
    one = prepared["llama_adapter-0"]
    expected = advance(tiles, [one.row(tiles, 0)], [[0, 40]])[0]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = advance(tiles, [one.row(tiles, 1)], [[0, 32, 40]])[0]
    torch.set_num_threads(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_adapters_do_the_same_over_coded_weights_to_the_bit(
    world: World, prepared: dict[str, Prepared], form: Form
) -> None:
    found = []
    for codes in (False, True):
        stepping = World.of(world.backbone, form=form, codes=codes, rounded=False)
        chosen = ("low rank, ragged", "input scales", "bottleneck-0")
        rows = [prepared[case].row(stepping, slot) for slot, case in enumerate(chosen)]
        rows.append(Row(SLOTS - 1, drawn_ids(80)))
        found.append(advance(stepping, rows, [BOUNDS, [0, 9, 40], BOUNDS, [0, 1, 79, 80]]))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("form", FORMS)
def test_threads_that_share_the_rows_of_long_prompts_do_not_change_a_bit(
    world: World, prepared: dict[str, Prepared], form: Form
) -> None:
    stepping = World.of(world.backbone, form=form)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        own = [prepared[case].row(stepping, slot) for slot, case in enumerate(SHARING)]
        rows = [replace(row, ids=drawn_ids(150, seed=row.slot)) for row in own]
        rows.append(Row(SLOTS - 1, drawn_ids(140)))
        results.append(advance(stepping, rows, [[0, len(row.ids)] for row in rows]))
    torch.set_num_threads(before)
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_read_have_the_bits_that_they_have_among_all(
    world: World, prepared: dict[str, Prepared], form: Form
) -> None:
    stepping = World.of(world.backbone, form=form)
    cases = list(prepared)
    for first in range(0, len(cases), SLOTS - 1):
        chosen = cases[first : first + SLOTS - 1]
        rows = [prepared[case].row(stepping, slot) for slot, case in enumerate(chosen)]
        runs = [run for row in rows for run in row.runs([0, 40])]
        runs.append(Run(SLOTS - 1, 0, drawn_ids(70)))
        among_all = stepping.step(runs)
        expected = among_all.logits(range(len(rows) * 40 + 70)).clone()
        states_td = among_all.states().clone()
        for read in ([0, 39, 41, 50, len(expected) - 1], [*range(3, 60)], [len(expected) - 40]):
            found = stepping.step(runs, read=read)
            assert torch.equal(found.states()[read], states_td[read]), chosen
            assert torch.equal(found.logits(read[::-1]), expected[read[::-1]]), chosen


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_that_overflows_breaks_no_other_row(
    world: World, prepared: dict[str, Prepared], form: Form
) -> None:
    stepping = World.of(world.backbone, form=form)
    shape = world.backbone.shape
    broken = {
        place: LinearTerm(
            down=torch.full((3, inputs), 1e30),
            up=torch.full((outputs, 3), 1e30),
            scale=1.0,
        )
        for place, (outputs, inputs) in shape.linears.items()
        if place.endswith(("q_proj", "gate_proj"))
    }
    adapter = prepare(Terms(linears=broken), shape, loaded())
    fine = prepared["lora-0"]
    expected = advance(stepping, [fine.row(stepping, 0)], [[0, 40]])[0]
    rows = [Row(1, IDS[:9], adapter), fine.row(stepping, 0), Row(2, IDS, adapter)]
    _, found, overflown = advance(stepping, rows, [[0, 9], [0, 40], [0, 40]])
    assert torch.equal(found, expected)
    assert not overflown.isfinite().all()


def test_later_logits_are_the_adapters(world: World, prepared: dict[str, Prepared]) -> None:
    one = prepared["low rank, head"]
    row = one.row(world, 0)
    hidden = world.step([Run(1, 0, IDS[:3]), Run(0, 0, IDS, row.adapter)])
    logits_nv = hidden.logits(range(43)).clone()
    assert torch.equal(hidden.logits([42, 1, 7]), logits_nv[[42, 1, 7]])
    assert hidden.likeliest([42, 1, 7]) == logits_nv[[42, 1, 7]].argmax(-1).tolist()


def test_weights_of_an_adapters_own_stand_for_the_bases(world: World, exact: Backbone) -> None:
    generator = torch.Generator().manual_seed(4)
    own = {
        place: LinearTerm(
            weight=0.2 * torch.randn(world.backbone.shape.linears[place], generator=generator)
        )
        for place in ("layers.0.self_attn.k_proj", "layers.2.mlp.down_proj", "lm_head")
    }
    adapter = prepare(Terms(linears=own), world.backbone.shape, loaded())
    rows = [Row(0, IDS, adapter), Row(1, IDS)]
    found = advance(world, rows, [BOUNDS, BOUNDS])[0]
    expected = run_terms(exact, torch.tensor(IDS), terms=Terms(linears=own))
    assert distance(found, expected) < 0.02


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (Terms(weights={"model.norm.weight": torch.ones(128)}), "own weights"),
        (Terms(linears={"layers.1.mlp.up_proj": LinearTerm(function=torch.add)}), "up_proj"),
        (Terms(linears={"lm_head": LinearTerm(input_scale=torch.ones(128))}), "head"),
    ],
)
def test_what_the_step_does_not_compute_is_refused(
    world: World, terms: Terms, message: str
) -> None:
    with pytest.raises(Unsuited, match=message):
        prepare(terms, world.backbone.shape, loaded())
