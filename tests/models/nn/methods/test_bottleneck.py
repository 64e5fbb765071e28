"""Bottleneck adapters against the papers' formulas, put on a plain network by hooks."""

import pytest
import torch
import torch.nn.functional as F

from models.nn.methods.bottleneck import Bottleneck
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)
from tests.models.nn.methods.learning import falls, train_ours

BASES = ["llama-biased-tied", "mistral-window", "qwen3", "gemma2", "gemma3", "granite", "phi3"]
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}
METHODS = [
    Bottleneck(size=6),
    Bottleneck(size=5, placement="pfeiffer", activation="relu", scale=0.5),
    Bottleneck(size=4, placement="parallel", activation="silu"),
    Bottleneck(size=3, placement="parallel", activation="tanh", scale=1.0),
]


def _put(network, method, tensors):
    names = ["self_attn", "mlp"] if method.placement == "houlsby" else ["mlp"]
    for index, block in enumerate(network.model.layers):
        for name in names:
            own = [
                tensors[f"layers.{index}.{name}.adapter_{tensor}"]
                for tensor in ("down", "down_bias", "up", "up_bias")
            ]
            getattr(block, name).register_forward_hook(_hook(method, own))


def _hook(method, own):
    down, down_bias, up, up_bias = own

    def hook(module, args, output):
        attended = isinstance(output, tuple)
        result = output[0] if attended else output
        read = args[0] if method.placement == "parallel" else result
        inner = ACTIVATIONS[method.activation](read @ down.T + down_bias)
        result = result + method.scale * (inner @ up.T + up_bias)
        return (result, *output[1:]) if attended else result

    return hook


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", METHODS, ids=["houlsby", "pfeiffer", "parallel", "unscaled"])
@torch.no_grad()
def test_it_is_the_formula_on_a_plain_network(variant, method):
    backbone, network = make_backbone(variant), make_network(variant)
    tensors, ids = random_tensors(method, backbone), random_ids(15)
    _put(network, method, tensors)
    theirs = network(ids[None]).logits[0]
    assert (theirs - run(backbone, ids)).abs().max() > 1e-2
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("placement", "per_block"), [("houlsby", 2), ("pfeiffer", 1)])
def test_the_count_is_that_of_the_papers(placement, per_block):
    shape = make_backbone("llama").shape
    method = Bottleneck(size=7, placement=placement)
    layers, d, m = shape.layers, shape.hidden, 7
    assert method.parameters(shape) == per_block * layers * (2 * d * m + m + d)


def test_parallel_starts_from_a_scale_of_four():
    assert Bottleneck(placement="parallel").scale == 4.0
    assert Bottleneck(placement="parallel", scale=2).scale == 2.0
    assert Bottleneck(placement="pfeiffer").scale == 1.0


@pytest.mark.parametrize("method", METHODS[:3], ids=["houlsby", "pfeiffer", "parallel"])
def test_training_lowers_the_loss(method):
    assert falls(train_ours(method, make_backbone("qwen2"), rate=1e-2))
