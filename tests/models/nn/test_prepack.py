"""A prepacked base computes what the base computes."""

import pytest
import torch

from models.nn.attention import PackedCausal, Span
from models.nn.backbone import Backbone
from models.nn.executors import NOBODY, Segment, Segments
from models.nn.kernels.prepacked import PREPACKED, is_worth_it
from models.nn.methods.lora import Lora
from models.nn.prepack import prepack
from models.nn.terms import Terms
from tests.models.nn.families import make_backbone, random_ids, random_tensors

ROWS = 9


def logits(backbone: Backbone, executor=NOBODY) -> torch.Tensor:
    hidden = backbone.hidden(
        random_ids(ROWS),
        positions=torch.arange(ROWS),
        attention=PackedCausal([Span(0, ROWS)]),
        executor=executor,
    )
    return backbone.logits(hidden, executor=executor).float()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("variant", ["llama", "llama-biased-tied", "qwen3", "phi3", "gemma2"])
@torch.no_grad()
def test_logits_are_the_same_with_adapters_and_without(variant: str) -> None:
    """By the flat forward, and by the network's own where that is all there is."""
    plain = make_backbone(variant, dtype=torch.bfloat16)
    packed = make_backbone(variant, dtype=torch.bfloat16)
    packs = prepack(packed)
    assert packs == is_worth_it(torch.zeros(1).bfloat16())
    method = Lora(rank=2)
    terms = Terms.of(method, random_tensors(method, plain), plain.base)
    for executor in (NOBODY, Segments([Segment(0, ROWS, terms)])):
        assert distance(logits(packed, executor), logits(plain, executor)) < 0.02
    kept = [joint.weight.kept.keys() for joint in packed.joints()]
    assert len(kept) == (4 * plain.shape.layers if plain.is_flat else 0)
    assert all(names == ({PREPACKED} if packs else set()) for names in kept)


@torch.no_grad()
def test_replaced_parameters_are_those_that_are_used() -> None:
    plain, packed = (make_backbone("llama", dtype=torch.bfloat16) for _ in range(2))
    prepack(packed)
    name = "model.layers.0.mlp.up_proj.weight"
    other = torch.nn.Parameter(torch.randn(plain.shape.parameters[name]).bfloat16())
    expected = logits(plain.using({name: other}))
    assert distance(logits(packed.using({name: other})), expected) < 0.02
    assert distance(logits(packed), expected) > 0.05


def test_a_float32_base_stays_as_it_is() -> None:
    assert not prepack(make_backbone("llama"))
