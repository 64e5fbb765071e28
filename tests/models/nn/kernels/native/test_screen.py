"""The likeliest tokens by a screen are those of all logits, whatever the states and the head."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.nn.kernels.native import library, reason
from models.nn.kernels.native.adapter import StepAdapter, prepare
from models.nn.kernels.native.batch import Run
from models.nn.methods import parse_method
from models.nn.terms import Terms
from tests.models.nn.kernels.native.stepping import SLOTS, World, drawn_ids, loaded, make_backbone

TOKENS = 300 * 16
"""More panels than a row may have candidates."""
LENGTH = 60

pytestmark = pytest.mark.skipif(not getattr(library(), "trains", False), reason=reason())


def make_world(
    change: Callable[[PreTrainedModel], object] = lambda _: None, *, codes: bool = False
) -> World:
    backbone = make_backbone(vocab=TOKENS, change=change)
    world = World.of(backbone, codes=codes, screens=True)
    assert world.step.model.record.screen.panels
    return world


def told(world: World, adapter: StepAdapter | None = None) -> tuple[list[int], Tensor]:
    """Return the likeliest tokens of many rows, told at once, and all their logits."""
    runs = [Run(slot, 0, drawn_ids(LENGTH, seed=slot), adapter) for slot in range(SLOTS)]
    rows = list(range(SLOTS * LENGTH))
    hidden = world.step(runs, likeliest=rows)
    return hidden.likeliest(rows), hidden.logits(rows).clone()


@pytest.mark.parametrize("codes", [False, True])
def test_the_likeliest_are_those_of_all_logits(codes: bool) -> None:
    tokens, logits_tv = told(make_world(codes=codes))
    assert tokens == logits_tv.argmax(1).tolist()
    assert len(set(tokens)) > LENGTH


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13])
def test_any_number_of_rows(rows: int) -> None:
    world = make_world()
    hidden = world.step([Run(0, 0, drawn_ids(rows))], likeliest=range(rows))
    assert hidden.likeliest(range(rows)) == hidden.logits(range(rows)).argmax(1).tolist()


def test_only_what_the_screen_leaves_is_looked_at() -> None:
    world, other = make_world(), make_world(lambda network: head(network).neg_())
    world.step.model.record.screen = other.step.model.record.screen
    tokens, logits_tv = told(world)
    assert tokens != logits_tv.argmax(1).tolist()


def test_of_equal_tokens_the_first_is_told() -> None:
    def twice(network: PreTrainedModel) -> None:
        half = TOKENS // 2
        head(network)[half:] = head(network)[:half].clone()

    tokens, logits_tv = told(make_world(twice))
    assert max(tokens) < TOKENS // 2
    assert tokens == [int((row == row.amax()).nonzero()[0]) for row in logits_tv]


def test_more_candidates_than_there_is_room_for() -> None:
    tokens, _ = told(make_world(lambda network: head(network).copy_(head(network)[:1].clone())))
    assert set(tokens) == {0}


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e12, 1e25])
def test_states_of_any_size(size: float) -> None:
    def scale(network: PreTrainedModel) -> None:
        network.model.norm.weight.mul_(size)

    tokens, logits_tv = told(make_world(scale))
    assert tokens == [int((row == row.amax()).nonzero()[0]) for row in logits_tv]
    plain = float(told(make_world())[1].abs().mean())
    assert float(logits_tv.abs().mean()) == pytest.approx(size * plain, rel=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(value: float) -> None:
    def spoil(network: PreTrainedModel) -> None:
        network.model.norm.weight[3] = value

    assert set(told(make_world(spoil))[0]) == {-1}


def test_an_adapter_of_the_head_is_not_screened() -> None:
    world = make_world()
    base = world.backbone.base
    method = parse_method({"type": "lora", "rank": 4, "target_modules": ["lm_head"]})
    tensors = method.init(base, torch.Generator().manual_seed(0))
    drawn = {name: torch.randn(tensor.shape) for name, tensor in tensors.items()}
    adapter = prepare(Terms.of(method, drawn, base), base.shape, loaded())
    tokens, logits_tv = told(world, adapter)
    assert tokens == logits_tv.argmax(1).tolist()
    assert tokens != told(world)[0]


def test_a_head_that_is_not_finite_is_not_screened() -> None:
    def spoil(network: PreTrainedModel) -> None:
        head(network)[7, 5] = float("inf")

    world = World.of(make_backbone(vocab=TOKENS, change=spoil), screens=True)
    assert not world.step.model.record.screen.panels
    assert set(told(world)[0]) == {-1}


def head(network: PreTrainedModel) -> Tensor:
    weight: Tensor = network.get_output_embeddings().weight
    return weight
