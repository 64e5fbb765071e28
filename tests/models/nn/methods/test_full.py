"""All weights: names, what Transformers makes of the file, training as torch trains the network."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from core.errors import InvalidRequest
from models.nn.artifact import save_artifact
from models.nn.methods.full import Full
from models.nn.methods.head import Head
from models.nn.terms import Terms
from tests.models.nn.families import (
    VARIANTS,
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)
from tests.models.nn.methods.problem import World, curve


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_reads_the_file_as_a_state_dict(variant, tmp_path):
    backbone, ids = make_backbone(variant), random_ids(12)
    for block in ({}, {"last_blocks": 2}):
        method = Full(**block)
        tensors = random_tensors(method, backbone)
        folder = tmp_path / str(method.last_blocks)
        save_artifact(folder, method=method, tensors=tensors, base=backbone.base, provenance={})
        network = make_network(variant)
        file = load_file(folder / "adapter_model.safetensors")
        report = network.load_state_dict(file, strict=False)
        assert not report.unexpected_keys
        tied = ["lm_head.weight"] if backbone.shape.tied else []
        assert method.last_blocks or report.missing_keys == tied
        with torch.no_grad():
            expected = network(input_ids=ids[None]).logits[0]
        ours = run_alone(backbone, ids, method=method, tensors=tensors)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
        assert (ours - run(backbone, ids)).abs().max() > 1e-2


def test_the_last_blocks_are_those_next_to_the_head():
    tied, untied = (make_backbone(name).shape for name in ("qwen3", "qwen2"))
    names = set(Full(last_blocks=2).tensors(untied))
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"1", "2"}
    assert {name for name in names if ".layers." not in name} == {
        "model.norm.weight",
        "lm_head.weight",
    }
    rest = {name for name in Full(last_blocks=3).tensors(tied) if ".layers." not in name}
    assert rest == {"model.norm.weight"}
    assert set(Full().tensors(tied)) - set(Full(last_blocks=3).tensors(tied)) == {
        "model.embed_tokens.weight"
    }


def test_it_counts_what_transformers_counts():
    for variant in ("llama-biased-tied", "qwen2"):
        network = make_network(variant)
        expected = sum(parameter.numel() for parameter in network.parameters())
        assert Full().parameters(make_backbone(variant).shape) == expected


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(InvalidRequest, match="3 blocks") as error:
        Full(last_blocks=4).tensors(make_backbone("qwen2").shape)
    assert error.value.param == "peft.last_blocks"


def test_a_base_whose_parameters_are_not_listed_must_be_pulled_again():
    shape = make_backbone("qwen2").shape.model_copy(update={"parameters": {}})
    with pytest.raises(InvalidRequest, match="pull") as error:
        Full().tensors(shape)
    assert error.value.code == "base_outdated"


def test_fresh_tensors_share_no_memory_with_the_base():
    backbone, ids = make_backbone("llama-biased-tied"), random_ids(6)
    before = run(backbone, ids)
    for tensor in Full().init(backbone.base, torch.Generator()).values():
        tensor.add_(1.0)
    assert torch.equal(run(backbone, ids), before)


@pytest.mark.parametrize("variant", ["llama-biased-tied", "gemma3", "phi3"])
def test_gradients_are_those_of_the_network_itself(variant):
    backbone, network, ids = make_backbone(variant), make_network(variant), random_ids(14)
    F.cross_entropy(network(input_ids=ids[None]).logits[0, :-1], ids[1:]).backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    tensors = Full().init(backbone.base, torch.Generator())
    for tensor in tensors.values():
        tensor.requires_grad_()
    logits = run_alone(backbone, ids, method=Full(), tensors=tensors)
    F.cross_entropy(logits[:-1], ids[1:]).backward()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_it_shares_no_batch_and_does_not_leave_the_trunk_alone(world):
    base = world.backbone.base
    assert not Full.shares_batch
    assert Head.shares_batch
    terms = Terms.of(Full(), Full().init(base, torch.Generator()), base)
    assert not terms.leaves_trunk_alone


@pytest.mark.parametrize("block", [{}, {"last_blocks": 1}])
def test_a_job_learns_and_transformers_loads_what_it_made(world, block):
    said = world.train({"type": "full", **block}, learning_rate=3e-3)
    losses = curve(said)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    network = AutoModelForCausalLM.from_pretrained(world.base_folder)
    ids = torch.tensor(world.renderer.encode("The film was good"))
    before = network(input_ids=ids[None]).logits[0].detach()
    file = load_file(Path(said[-1].adapter_folder) / "adapter_model.safetensors")
    network.load_state_dict(file, strict=False)
    after = network(input_ids=ids[None]).logits[0].detach()
    assert (after - before).abs().max() > 1e-2
    ours = run_alone(world.backbone, ids, method=Full(**block), tensors=file)
    torch.testing.assert_close(ours, after, atol=2e-5, rtol=1e-5)
