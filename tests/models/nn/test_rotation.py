import pytest
import torch

from models.nn.backbone import Backbone
from tests.models.nn.families import ROTATED, make_network, random_ids, run

CONTEXTS = {"phi3-longrope": 32, "llama-dynamic": 128, "gemma3-dynamic": 128}


@pytest.mark.parametrize("variant", ROTATED)
@torch.no_grad()
def test_rows_are_rotated_alike_whatever_is_beside_or_was_before_them(variant):
    backbone = Backbone(make_network(variant))
    short, long = random_ids(20), random_ids(200, seed=1)
    alone = run(backbone, short)
    together = run(backbone, torch.cat([long, short]), lengths=(200, 20))[200:]
    torch.testing.assert_close(together, alone, atol=4e-6, rtol=1e-5)
    torch.testing.assert_close(run(backbone, short), alone, atol=0, rtol=0)


@pytest.mark.parametrize(("variant", "context"), CONTEXTS.items())
@torch.no_grad()
def test_all_that_fits_the_context_equals_the_unchanged_network(variant, context):
    network = make_network(variant)
    ids = random_ids(context)
    expected = network(ids[None]).logits[0]
    backbone = Backbone(network)
    assert backbone.shape.context == context
    torch.testing.assert_close(run(backbone, ids), expected, atol=1e-5, rtol=1e-5)
