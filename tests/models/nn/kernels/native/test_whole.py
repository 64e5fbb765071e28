"""A step over other parameters of its network: whole weights, or those of some layers."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.kernels.native import library, reason
from models.nn.kernels.native.step import Form, NativeStep
from models.nn.weight_only import hold_in_8_bits
from tests.models.nn.families import run
from tests.models.nn.kernels.native.stepping import (
    SHAPES,
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

IDS = drawn_ids(60)
BOUNDS = [0, 20, 50, *range(51, 61)]
LAST_LAYER, FINAL_NORM, HEAD = "model.layers.2.", "model.norm.", "lm_head."


def changed(backbone: Backbone, *beginnings: str) -> dict[str, Tensor]:
    """Return parameters whose names begin so, all unless told, with other numbers."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: (value + 0.05 * torch.randn(value.shape, generator=generator)).to(value.dtype)
        for name, value in backbone.network.named_parameters()
        if name.startswith(beginnings or "") and value.is_floating_point()
    }


def with_weights(shape: str, weights: dict[str, Tensor]) -> Backbone:
    return make_backbone(
        shape, change=lambda network: network.load_state_dict(weights, strict=False)
    )


def over(world: World, weights: dict[str, Tensor]) -> World:
    model = world.step.model.over(weights)
    step = NativeStep(model, loaded(), form=world.step.form)
    return World(world.backbone, step, world.keys, world.values)


@pytest.mark.parametrize("form", VECTORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_step_is_that_of_a_network_with_the_same_weights(shape: str, form: Form) -> None:
    world = World.of(make_backbone(shape), form=form, screens=True)
    before = advance(world, [Row(0, IDS)], [BOUNDS])[0]
    for beginnings in ((), (LAST_LAYER, FINAL_NORM, HEAD), (LAST_LAYER, FINAL_NORM)):
        weights = changed(world.backbone, *beginnings)
        own = World.of(with_weights(shape, weights), form=form)
        expected = advance(own, [Row(0, IDS)], [BOUNDS])[0]
        assert torch.equal(advance(over(world, weights), [Row(1, IDS)], [BOUNDS])[0], expected)
        assert distance(before, expected) > 0.1
    assert torch.equal(advance(world, [Row(0, IDS)], [BOUNDS])[0], before)


def test_its_likeliest_tokens_are_those_of_its_own_head() -> None:
    world = World.of(make_backbone("biased, tied", vocab=400 * 16), screens=True)
    other = over(world, changed(world.backbone))
    assert other.step.model.record.screen.panels != world.step.model.record.screen.panels
    for each in (world, other):
        hidden = each.step(list(Row(0, IDS).runs([0, len(IDS)])), likeliest=[5, 59])
        expected = hidden.logits([5, 59]).argmax(-1).tolist()
        assert hidden.likeliest([5, 59]) == expected


def test_what_stays_is_shared_and_kept_alive() -> None:
    world = World.of(make_backbone(), screens=True)
    base = world.step.model
    model = base.over(changed(world.backbone, LAST_LAYER, FINAL_NORM))
    for layer in (0, 1):
        assert model.layers[layer].qkv.panels == base.layers[layer].qkv.panels
    assert model.layers[2].qkv.panels != base.layers[2].qkv.panels
    assert model.layers[2].keys == base.layers[2].keys
    assert model.record.head.panels == base.record.head.panels
    assert model.arena.bytes < base.arena.bytes
    alive = weakref.ref(base.arena)
    del base, world
    gc.collect()
    assert alive() is not None


@pytest.mark.parametrize("form", VECTORS)
def test_weights_over_a_base_in_8_bits_are_not(form: Form) -> None:
    """Also where the head is the embedding, which it is no more in 8 bits."""
    for shape in ("biased, tied", "plain"):
        packed = hold_in_8_bits(make_backbone(shape, dtype=torch.float32))
        weights = changed(make_backbone(shape))
        own = World.of(with_weights(shape, weights), form=form)
        expected = advance(own, [Row(0, IDS)], [BOUNDS])[0]
        world = World.of(packed, form=form)
        assert torch.equal(advance(over(world, weights), [Row(1, IDS)], [BOUNDS])[0], expected)
        last = changed(make_backbone(shape, dtype=torch.float32), LAST_LAYER, FINAL_NORM)
        expected = run(packed.using(last), torch.tensor(IDS))
        found = advance(over(world, last), [Row(1, IDS)], [BOUNDS])[0]
        assert distance(found, expected) < 0.02
