"""The likeliest tokens by a screen are those of all logits, whatever the states and the head."""

from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.nn.kernels.native import library, reason
from models.nn.kernels.native.adapter import StepAdapter, prepare
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.screen import _SHORTEST, _slack
from models.nn.methods import parse_method
from models.nn.terms import Terms
from tests.models.nn.kernels.native.comparing import needs_avx512, threads
from tests.models.nn.kernels.native.stepping import SLOTS, World, drawn_ids, loaded, make_backbone

TOKENS = 400 * 16
"""More panels than a row may have candidates."""
LENGTH = 60
FEW = 4
"""Rows that AVX2 screens together; of more, all logits are computed."""

WIDER = "five heads and 160 inputs"
"""A network with 128 inputs in 8 bits, two tiles of them; others here have 64."""

pytestmark = pytest.mark.skipif(library() is None, reason=reason())
FORMS = (
    *dict.fromkeys(("avx2", *getattr(library(), "forms", ()))),
    pytest.param("emulated", marks=needs_avx512),
)


class Worlds(Protocol):
    """Makes networks whose heads have screens, computed in one form of the step."""

    def __call__(
        self,
        change: Callable[[PreTrainedModel], object] = lambda _: None,
        *,
        codes: bool = False,
        shape: str = "plain",
    ) -> World: ...


@pytest.fixture(params=FORMS)
def make_world(request: pytest.FixtureRequest) -> Worlds:
    def make(
        change: Callable[[PreTrainedModel], object] = lambda _: None,
        *,
        codes: bool = False,
        shape: str = "plain",
    ) -> World:
        backbone = make_backbone(shape, vocab=TOKENS, change=change)
        rounded = request.param == "avx2" and not codes
        world = World.of(backbone, form=request.param, codes=codes, rounded=rounded, screens=True)
        assert world.step.model.record.screen.panels
        return world

    return make


def told(world: World, adapter: StepAdapter | None = None) -> tuple[list[int], Tensor]:
    """Return the likeliest tokens of many rows, told at once if possible, and all their logits."""
    runs = [Run(slot, 0, drawn_ids(LENGTH, seed=slot), adapter) for slot in range(SLOTS)]
    rows = list(range(SLOTS * LENGTH))
    hidden = world.step(runs, likeliest=rows)
    together = FEW if world.step.form == "avx2" else len(rows)
    tokens: list[int] = []
    for first in range(0, len(rows), together):
        tokens += hidden.likeliest(rows[first : first + together])
    return tokens, hidden.logits(rows).clone()


@pytest.mark.parametrize("codes", [False, True])
def test_the_likeliest_are_those_of_all_logits(make_world: Worlds, codes: bool) -> None:
    tokens, logits_tv = told(make_world(codes=codes))
    assert tokens == logits_tv.argmax(1).tolist()
    assert len(set(tokens)) > LENGTH


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 17, 45])
def test_any_number_of_rows(make_world: Worlds, rows: int) -> None:
    world = make_world()
    hidden = world.step([Run(0, 0, drawn_ids(rows))], likeliest=range(rows))
    assert hidden.likeliest(range(rows)) == hidden.logits(range(rows)).argmax(1).tolist()


def test_only_what_the_screen_leaves_is_looked_at(make_world: Worlds) -> None:
    world, other = make_world(), make_world(lambda network: head(network).neg_())
    world.step.model.record.screen = other.step.model.record.screen
    tokens, logits_tv = told(world)
    assert tokens != logits_tv.argmax(1).tolist()


def test_of_equal_tokens_the_first_is_told(make_world: Worlds) -> None:
    def twice(network: PreTrainedModel) -> None:
        half = TOKENS // 2
        head(network)[half:] = head(network)[:half].clone()

    tokens, logits_tv = told(make_world(twice))
    assert max(tokens) < TOKENS // 2
    assert tokens == [int((row == row.amax()).nonzero()[0]) for row in logits_tv]


def test_more_inputs_than_a_tile_has(make_world: Worlds) -> None:
    tokens, logits_tv = told(make_world(shape=WIDER))
    assert tokens == logits_tv.argmax(1).tolist()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Which then sees all panels."""
    with threads(1):
        yield


@pytest.mark.usefixtures("one_thread")
def test_more_candidates_than_there_is_room_for(make_world: Worlds) -> None:
    def repeat(network: PreTrainedModel) -> None:
        head(network).copy_(head(network)[:1].clone())
        head(network)[-2] *= 0.99
        head(network)[-1] *= 1.01

    tokens, logits_tv = told(make_world(repeat))
    assert tokens == logits_tv.argmax(1).tolist()
    assert len(set(tokens)) > 1


@pytest.mark.usefixtures("one_thread")
def test_room_is_made_by_those_who_have_fallen_behind(make_world: Worlds) -> None:
    def grow(network: PreTrainedModel) -> None:
        panels = head(network).view(-1, 16, head(network).shape[1])
        panels.copy_(panels[0] * torch.logspace(-4, 0, len(panels))[:, None, None])

    world, other = make_world(), make_world(grow)
    assert told(other)[0] == told(other)[1].argmax(1).tolist()
    world.step.model.record.screen = other.step.model.record.screen
    tokens, logits_tv = told(world)
    assert min(tokens) > TOKENS // 2 > min(logits_tv.argmax(1).tolist())


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e12, 1e25])
def test_states_of_any_size(make_world: Worlds, size: float) -> None:
    def scale(network: PreTrainedModel) -> None:
        network.model.norm.weight.mul_(size)

    tokens, logits_tv = told(make_world(scale))
    assert tokens == [int((row == row.amax()).nonzero()[0]) for row in logits_tv]
    plain = float(told(make_world())[1].abs().mean())
    assert float(logits_tv.abs().mean()) == pytest.approx(size * plain, rel=0.02)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(make_world: Worlds, value: float) -> None:
    def spoil(network: PreTrainedModel) -> None:
        network.model.norm.weight[3] = value

    assert set(told(make_world(spoil))[0]) == {-1}


def test_an_adapter_of_the_head_is_not_screened(make_world: Worlds) -> None:
    world = make_world()
    base = world.backbone.base
    method = parse_method({"type": "lora", "rank": 4, "target_modules": ["lm_head"]})
    tensors = method.init(base, torch.Generator().manual_seed(0))
    drawn = {name: torch.randn(tensor.shape) for name, tensor in tensors.items()}
    adapter = prepare(Terms.of(method, drawn, base), base.shape, loaded())
    tokens, logits_tv = told(world, adapter)
    assert tokens == logits_tv.argmax(1).tolist()
    assert tokens != told(world)[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e37])
def test_a_head_of_which_logits_may_be_no_numbers_is_not_screened(value: float) -> None:
    def spoil(network: PreTrainedModel) -> None:
        head(network)[7, 5] = value

    world = World.of(make_backbone(vocab=TOKENS, change=spoil), screens=True)
    assert not world.step.model.record.screen.panels
    tokens, logits_tv = told(world)
    finite_t = torch.isfinite(logits_tv).all(1)
    assert tokens == torch.where(finite_t, logits_tv.argmax(1), -1).tolist()


def test_the_slack_covers_what_rounding_moves_weights_by() -> None:
    """Of a head that bfloat16 does not hold, with tokens and groups that are next to nothing."""
    outputs, inputs, group = 64, 160, 128
    head_vd = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(4))
    head_vd[3] = 0.0
    head_vd[4] *= 1e-25
    head_vd[5, :group] *= 1e-33
    packed = torch.empty(loaded().rounded_bytes(head_vd), dtype=torch.uint8)
    loaded().pack_rounded_at(packed.data_ptr(), head_vd)
    whole, scales = packed.view(outputs // 16, -1).split([2 * 16 * inputs, 2 * 4 * 16], dim=1)
    whole_nd = whole.reshape(-1).view(torch.int16).view(-1, inputs // 2, 16, 2).transpose(1, 2)
    scale_ng = scales.reshape(-1).view(torch.float32).view(-1, 2, 16).transpose(1, 2)
    scale_nd = scale_ng.reshape(outputs, 2).repeat_interleave(group, dim=1)[:, :inputs]
    rounded_nd = whole_nd.reshape(outputs, inputs).double() * scale_nd.double()
    kept_nd = head_vd.bfloat16()
    apart_n = (rounded_nd - kept_nd.double()).norm(dim=1)
    slack, size_n = _slack(head_vd, kept_nd), kept_nd.double().norm(dim=1).clamp(min=_SHORTEST)
    assert (rounded_nd - head_vd.double()).norm() < 3e-4 * head_vd.norm()
    assert (apart_n <= slack * size_n).all()
    assert slack < 2 * float((apart_n / size_n).max())


def head(network: PreTrainedModel) -> Tensor:
    weight: Tensor = network.get_output_embeddings().weight
    return weight
