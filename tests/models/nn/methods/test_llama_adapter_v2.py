"""LLaMA-Adapter V2 against LitGPT's formulas, put on a plain network by hooks."""

import pytest
import torch

from models.nn.artifact import load_artifact, save_artifact
from models.nn.methods.llama_adapter_v2 import LlamaAdapterV2
from models.nn.terms import Terms
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)
from tests.models.nn.methods.gated_prompt_formula import add_prompts
from tests.models.nn.methods.learning import falls, train_ours

BASES = ["llama-biased-tied", "mistral-window", "qwen2", "qwen3", "gemma3", "granite", "phi3"]
METHODS = [
    LlamaAdapterV2(prompt_length=4),
    LlamaAdapterV2(prompt_length=2, layers=3, lm_head=False),
]


def _put(network, method, tensors):
    offset = 1.0 if network.config.model_type.startswith("gemma") else 0.0
    norms = {name.removesuffix(".gain") for name in tensors if name.endswith(".gain")}
    for path, module in network.named_modules():
        place = path.removeprefix("model.")
        if place in norms:
            module.weight.copy_(tensors[f"{place}.gain"] - offset)
        scale = tensors.get(f"{place}.adapter_scale")
        if scale is not None:
            bias = tensors[f"{place}.adapter_bias"]
            module.register_forward_hook(
                lambda module, args, output, scale=scale, bias=bias: scale * (output + bias)
            )
    # As in LitGPT, the prompt goes through the projections as they are now.
    layers = [i for i in range(3) if f"layers.{i}.self_attn.adaption_gate" in tensors]
    assert len(layers) == (1 if method.layers == "all-but-two" else method.layers)
    add_prompts(
        network,
        {i: tensors[f"layers.{i}.self_attn.adaption_prompt"] for i in layers},
        {i: tensors[f"layers.{i}.self_attn.adaption_gate"] for i in layers},
    )


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", METHODS, ids=["lm_head", "no_lm_head"])
@torch.no_grad()
def test_it_is_the_formula_on_a_plain_network(variant, method):
    backbone, network = make_backbone(variant), make_network(variant)
    tensors, ids = random_tensors(method, backbone), random_ids(15)
    _put(network, method, tensors)
    theirs = network(ids[None]).logits[0]
    assert (theirs - run(backbone, ids)).abs().max() > 1e-2
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_an_artifact_of_our_own_form_gives_equal_logits(tmp_path):
    method, backbone, ids = METHODS[0], make_backbone("phi3"), random_ids(9)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_model.safetensors",
        "graftwork.json",
    ]
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    ours, again = (
        run_alone(backbone, ids, method=method, tensors=each) for each in (tensors, loaded.tensors)
    )
    assert torch.equal(ours, again)


def test_gains_stay_float32_on_a_bfloat16_base():
    backbone = make_backbone("qwen2", dtype=torch.bfloat16)
    tensors = METHODS[0].init(backbone.base, torch.Generator().manual_seed(0))
    terms = Terms.of(METHODS[0], tensors, backbone.base)
    assert {term.gain.dtype for term in terms.norms.values()} == {torch.float32}
    assert {term.bias.dtype for term in terms.linears.values()} == {torch.bfloat16}


def test_the_count_is_that_of_litgpt():
    shape = make_backbone("llama").shape
    outputs = sum(out for out, _ in shape.linears.values())
    prompts = 2 * (5 * shape.hidden + shape.heads)
    method = LlamaAdapterV2(prompt_length=5, layers=2)
    assert method.parameters(shape) == prompts + (2 * shape.layers + 1) * shape.hidden + 2 * outputs
    without = LlamaAdapterV2(prompt_length=5, layers=2, lm_head=False)
    assert method.parameters(shape) - without.parameters(shape) == 2 * shape.vocab


def test_training_lowers_the_loss():
    assert falls(train_ours(METHODS[0], make_backbone("qwen2"), rate=1e-2))
