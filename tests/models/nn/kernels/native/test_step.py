"""The C++ step against the network in float32, and rows against themselves in other company."""

from functools import partial

import pytest
import torch

from models.nn.backbone import Backbone
from models.nn.kernels.native import library, reason
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.model import StepModel, Unsuited
from models.nn.kernels.native.step import Form, Hidden
from models.nn.quantized import unpack
from models.nn.weight_only import hold_in_8_bits
from tests.models.nn.families import make_backbone as make_family
from tests.models.nn.families import run
from tests.models.nn.kernels.native.comparing import needs_avx512
from tests.models.nn.kernels.native.stepping import (
    FORMS,
    SHAPES,
    VECTORS,
    VOCAB,
    Row,
    World,
    advance,
    distance,
    drawn_ids,
    loaded,
    make_backbone,
)

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

IDS = drawn_ids(150)
BOUNDS = [0, 60, 61, 140, *range(141, 151)]


@pytest.fixture(scope="module", params=VECTORS)
def world(request: pytest.FixtureRequest) -> World:
    return World.of(make_backbone(), form=request.param)


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_step_is_the_network(shape: str, form: Form) -> None:
    """It is nearer to the network in float32 than that is itself in bfloat16, or as near."""
    own = make_backbone(shape)
    expected = run(make_backbone(shape, dtype=torch.float32), torch.tensor(IDS))
    eager = distance(run(own, torch.tensor(IDS)).float(), expected)
    found = advance(World.of(own, form=form), [Row(1, IDS)], [BOUNDS])[0]
    assert distance(found, expected) < min(0.02, 1.1 * eager)


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("shape", ["biased, tied", "long heads"])
def test_weights_in_8_bits_are_their_unpacked_selves(shape: str, form: Form) -> None:
    packed = hold_in_8_bits(make_backbone(shape, dtype=torch.float32))
    parameters = dict(packed.network.named_parameters())
    unpacked = {name: unpack(each, dtype=torch.float32) for name, each in parameters.items()}
    expected = run(packed.using(unpacked), torch.tensor(IDS))
    found = advance(World.of(packed, form=form), [Row(1, IDS)], [BOUNDS])[0]
    assert distance(found, expected) < 0.02
    whole = advance(World.of(make_backbone(shape), form=form), [Row(1, IDS)], [[0, 150]])[0]
    assert distance(found, whole) > distance(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_8_bits_are_the_same_to_few_rows_and_to_many(form: Form) -> None:
    packed = hold_in_8_bits(make_backbone("biased, tied", dtype=torch.float32))
    world = World.of(packed, form=form)
    whole = advance(world, [Row(0, IDS)], [[0, 150]])[0]
    cut = advance(world, [Row(2, IDS)], [[0, 20, 52, 101, 102, 150]])[0]
    assert torch.equal(whole, cut)


def test_chunks_are_the_whole_to_the_bit(world: World) -> None:
    whole = advance(world, [Row(0, IDS)], [[0, 150]])[0]
    cut = advance(world, [Row(2, IDS)], [[0, 1, 7, 70, 71, 135, *range(136, 151)]])[0]
    assert torch.equal(whole, cut)


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_tokens_attend_by_vectors_as_chunks_do_to_the_bit(shape: str, form: Form) -> None:
    world = World.of(make_backbone(shape), form=form)
    whole = advance(world, [Row(0, IDS)], [[0, 150]])[0]
    drawn = advance(world, [Row(2, IDS, decodes=True)], [[0, 1, 60, *range(61, 151)]])[0]
    assert torch.equal(whole, drawn)


@needs_avx512
@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_among_tiles_are_the_networks_however_they_are_cut(shape: str) -> None:
    own = make_backbone(shape)
    expected = run(make_backbone(shape, dtype=torch.float32), torch.tensor(IDS))
    eager = distance(run(own, torch.tensor(IDS)).float(), expected)
    world = World.of(own, form="emulated")
    whole = advance(world, [Row(1, IDS)], [[0, 150]])[0]
    assert distance(whole, expected) < min(0.02, 1.1 * eager)
    cuts = [[0, 1, 7, 70, 119, 150], [0, 20, 52, 101, 102]]
    cut, other = advance(world, [Row(0, IDS), Row(2, IDS[:102])], cuts)
    assert torch.equal(cut, whole)
    assert torch.equal(other, whole[:102])


@needs_avx512
@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_tokens_among_tiles_depend_neither_on_company_nor_on_chunks(shape: str) -> None:
    world = World.of(make_backbone(shape), form="emulated")
    rows = [Row(slot, drawn_ids(50 + 45 * slot, seed=slot), decodes=True) for slot in range(3)]
    last = [[*range(len(row.ids) - 4, len(row.ids) + 1)] for row in rows]
    prompt = Row(3, IDS[:60])
    cuts = [[0, 10, 20, 30, 40, 60], *([0, 33, *bounds] for bounds in last)]
    together = advance(world, [prompt, *rows], cuts)[1:]
    for row, bounds, found in zip(rows, last, together, strict=True):
        again = Row(3, row.ids, decodes=True)
        alone = advance(world, [again], [[0, *bounds]])[0]
        chunk = advance(world, [Row(3, row.ids)], [[0, len(row.ids)]])[0]
        assert torch.equal(found, alone)
        assert distance(found, chunk) < 0.01


@needs_avx512
def test_one_thread_shapes_tiles_for_prompts_and_for_drawn_tokens_in_turn() -> None:
    world = World.of(make_backbone(), form="emulated")
    rows = [Row(slot, drawn_ids(40, seed=slot), decodes=slot % 2 == 1) for slot in range(4)]
    bounds = [[0, 24, 40], [0, 39, 40], [0, 24, 40], [0, 39, 40]]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    together = advance(world, rows, bounds)
    torch.set_num_threads(before)
    for row, own, found in zip(rows, bounds, together, strict=True):
        alone = advance(world, [Row(row.slot, row.ids, decodes=row.decodes)], [own])[0]
        assert torch.equal(found, alone)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", ["plain", "three heads a key", "five heads a key"])
def test_tokens_drawn_behind_each_other_are_those_of_steps_of_their_own(
    shape: str, form: Form
) -> None:
    """To the bit, also where wrong ones have been computed ahead before."""
    world = World.of(make_backbone(shape), form=form)
    one_by_one = advance(world, [Row(2, IDS, decodes=True)], [[0, 100, *range(101, 151)]])[0]
    world.step([Run(1, 0, IDS[:100])])
    found = []
    for start in range(100, 150, 5):
        places = range(start, start + 5)
        world.step([Run(1, place, [IDS[place - 7]], decodes=True) for place in places])
        found += world.logits([Run(1, place, [IDS[place]], decodes=True) for place in places])
    assert torch.equal(torch.cat(found), one_by_one[100:])


def test_row_does_not_depend_on_its_company(world: World) -> None:
    rows = [Row(slot, drawn_ids(90 + 9 * slot, seed=slot)) for slot in range(4)]
    bounds = [[0, 64, 80, *range(81, len(row.ids) + 1)] for row in rows]
    together = advance(world, rows, bounds)
    for row, found in zip(rows, together, strict=True):
        alone = advance(world, [Row(3 - row.slot, row.ids)], [[0, len(row.ids)]])[0]
        assert torch.equal(found, alone)


def test_threads_do_not_change_a_bit(world: World) -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(advance(world, [Row(0, IDS), Row(1, IDS[:5])], [[0, 90, 150], [0, 4, 5]])[0])
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_logits_come_in_the_order_asked_for_then_and_later(world: World) -> None:
    wanted = [7, 0, 29, 3]
    all_rows = world.logits([Run(0, 0, IDS[:30])])[0]
    hidden = world.step([Run(0, 0, IDS[:30])])
    assert torch.equal(hidden.logits(wanted), all_rows[wanted])
    assert torch.equal(hidden.logits([5, 2]), all_rows[[5, 2]])
    assert torch.equal(hidden.logits(wanted), all_rows[wanted])


def test_a_step_of_which_nothing_is_read_writes_the_cache_all_the_same(world: World) -> None:
    expected = advance(world, [Row(0, IDS[:40])], [[0, 40]])[0][39:]
    world.step([Run(1, 0, IDS[:39])], read=[])
    assert torch.equal(world.logits([Run(1, 39, IDS[39:40])])[0], expected)


@pytest.mark.parametrize("likeliest", [[], [2, 0, 1]])
def test_rows_go_on_as_in_a_step_of_their_own(world: World, likeliest: list[int]) -> None:
    """Also after others were computed, and more of them; what was wanted is wanted again."""
    slots = (3, 0, 2)

    def runs(place: int) -> list[Run]:
        return [Run(slot, place, [IDS[place + slot]], decodes=True) for slot in slots]

    def begin() -> Hidden:
        world.step([Run(slot, 0, IDS[slot : slot + 20]) for slot in slots])
        return world.step(runs(20), likeliest=likeliest)

    begin()
    expected = []
    for place in (21, 22):
        hidden = world.step(runs(place), likeliest=likeliest)
        expected.append((hidden.likeliest([2, 0, 1]), hidden.logits([1, 0, 2]).clone()))
    hidden = begin()
    for place, (tokens, logits) in zip((21, 22), expected, strict=True):
        world.step([Run(1, 0, IDS[:50])])
        hidden.go_on([run.ids[0] for run in runs(place)], [place] * 3)
        assert hidden.likeliest([2, 0, 1]) == tokens
        assert torch.equal(hidden.logits([1, 0, 2]), logits)


@pytest.mark.parametrize(
    ("ids", "starts"), [([5], [1]), ([5, VOCAB], [1, 1]), ([5, 5], [1, 220]), ([5, 5], [1, -1])]
)
def test_rows_do_not_go_on_to_what_lies_outside(
    world: World, ids: list[int], starts: list[int]
) -> None:
    hidden = world.step([Run(0, 0, [5]), Run(1, 0, [5])])
    with pytest.raises(ValueError, match=r"Slot|[Tt]oken"):
        hidden.go_on(ids, starts)


def test_runs_of_several_tokens_do_not_go_on(world: World) -> None:
    hidden = world.step([Run(0, 0, [5, 6]), Run(1, 0, [5])])
    with pytest.raises(ValueError, match="one token"):
        hidden.go_on([5, 5, 5], [2, 2, 1])


def test_of_rows_that_are_not_read_there_are_no_logits(world: World) -> None:
    runs = [Run(0, 0, IDS[:9])]
    hidden = world.step(runs, read=[3, 8])
    for rows in ([4], [3, 7]):
        with pytest.raises(ValueError, match="not read"):
            hidden.logits(rows)
        with pytest.raises(ValueError, match="not read"):
            hidden.likeliest(rows)
    with pytest.raises(ValueError, match="not read"):
        world.step(runs, read=[3, 8], likeliest=[0])


@pytest.mark.parametrize("read", [[-1], [9], [3, 3], [4, 2]])
def test_rows_to_be_read_are_named_in_order(world: World, read: list[int]) -> None:
    with pytest.raises(ValueError, match="in its order"):
        world.step([Run(0, 0, IDS[:9])], read=read)


@pytest.mark.parametrize("form", FORMS)
def test_likeliest_tokens_are_the_first_of_the_largest_logits(form: Form) -> None:
    backbone = make_backbone()
    head = backbone.network.get_output_embeddings().weight
    with torch.no_grad():
        head[80:] = head[:80]  # every logit has an equal
    world = World.of(backbone, form=form)
    hidden = world.step([Run(0, 0, IDS[:90])])
    rows = [*range(89, 40, -1), 3]
    expected: list[int] = hidden.logits(rows).argmax(-1).tolist()
    assert hidden.likeliest(rows) == expected
    assert max(expected) < 80
    hidden.states()[60] = torch.nan
    found = hidden.likeliest(rows)
    assert found[rows.index(60)] == -1
    assert [token for row, token in zip(rows, found, strict=True) if row != 60] == [
        token for row, token in zip(rows, expected, strict=True) if row != 60
    ]


def test_what_a_slot_held_before_does_not_matter(world: World) -> None:
    expected = advance(world, [Row(0, IDS[:40])], [[0, 40]])[0]
    for cache in (*world.keys, *world.values):
        cache[0, :, 40:] = 1e4
    assert torch.equal(advance(world, [Row(0, IDS[:40])], [[0, 9, 40]])[0], expected)


def test_a_row_that_is_no_number_stays_alone(world: World) -> None:
    expected = advance(world, [Row(0, IDS[:40])], [[0, 39, 40]])[0][-1]
    advance(world, [Row(0, IDS[:40]), Row(1, IDS[:40])], [[0, 39], [0, 39]])
    world.keys[1][1, :, 5] = torch.nan
    fine, broken = world.logits([Run(0, 39, IDS[39:40]), Run(1, 39, IDS[39:40])])
    assert torch.equal(fine[-1], expected)
    assert broken.isnan().all()
    for cache in (*world.keys, *world.values):
        cache.zero_()


@pytest.mark.parametrize(
    "bad",
    [
        *(Run(4, 0, [5]), Run(0, 219, [5, 5]), Run(0, -1, [5]), Run(0, 0, [VOCAB]), Run(0, 0, [])),
        Run(0, 0, [5, 5], decodes=True),
    ],
)
def test_what_lies_outside_is_refused(world: World, bad: Run) -> None:
    with pytest.raises(ValueError, match=r"Slot|[Tt]oken"):
        world.step([bad])


def test_weights_in_block_floating_point_are_for_avx2_alone() -> None:
    with pytest.raises(ValueError, match="AVX2"):
        World.of(make_backbone(), form="avx512", rounded=True)
    for bad in (torch.zeros(8, 32), torch.zeros(16, 8), torch.zeros(32, 16).t()):
        with pytest.raises(ValueError, match="cannot be packed"):
            loaded().pack_rounded_at(0, bad)


@needs_avx512
def test_tiles_compute_the_same_step() -> None:
    """The tiles' instructions are emulated here: what is tested is how they are used."""
    backbone = make_backbone("biased, tied")
    bounds = [[0, 37, 38, 39], [0, 20, 21]]
    vectors, tiles = (
        advance(World.of(backbone, form=form), [Row(0, IDS[:39]), Row(1, IDS[:21])], bounds)
        for form in ("avx512", "emulated")
    )
    for by_vectors, by_tiles in zip(vectors, tiles, strict=True):
        assert distance(by_tiles, by_vectors) < 0.01
    assert torch.equal(tiles[0][:21], tiles[1])


@pytest.mark.parametrize(
    ("variant", "message"), [("gemma2", "type gemma2"), ("qwen3", "type qwen3"), ("llama", "heads")]
)
def test_other_networks_are_refused(variant: str, message: str) -> None:
    backbone = make_family(variant, dtype=torch.bfloat16)
    with pytest.raises(Unsuited, match=message):
        StepModel.of(backbone, loaded(), keys=_cache(backbone), values=_cache(backbone))


def test_other_dtypes_are_refused() -> None:
    double = make_backbone(dtype=torch.float64)
    with pytest.raises(Unsuited, match="float64"):
        StepModel.of(double, loaded(), keys=_cache(double), values=_cache(double))
    wide, cache = make_backbone(dtype=torch.float32), partial(_cache, dtype=torch.float32)
    with pytest.raises(Unsuited, match=r"another kind, in torch\.float32"):
        StepModel.of(wide, loaded(), keys=cache(wide), values=cache(wide))


def test_network_in_float32_is_computed_in_bfloat16_all_the_same() -> None:
    """So it is served where the processor is no faster in bfloat16 but memory is."""
    bounds = [[0, 37, 38, 39]]
    narrow, wide = (
        advance(World.of(make_backbone(dtype=dtype)), [Row(0, IDS[:39])], bounds)[0]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(narrow, wide)


def _cache(backbone: Backbone, *, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    size = (1, backbone.shape.kv_heads, 8, backbone.shape.head_dim)
    return [torch.zeros(size, dtype=dtype) for _ in range(backbone.shape.layers)]
