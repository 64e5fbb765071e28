"""LLaMA-Adapter against PEFT where the gates allow, else against the formula on a plain network."""

import peft
import pytest
import torch

from core.errors import InvalidRequest
from models.nn.artifact import load_artifact, load_training_tensors, save_artifact
from models.nn.methods.llama_adapter import LlamaAdapter
from models.nn.shape import Shape
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

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
BASES = ["llama-biased-tied", "mistral-window", "qwen2", "qwen3", "gemma", "granite", "phi3"]
IN_PEFT = ["llama", "mistral"]
PROVENANCE = {"base": "tiny"}


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _save(folder, method, backbone, tensors):
    save_artifact(folder, method=method, tensors=tensors, base=backbone.base, provenance=PROVENANCE)


@pytest.mark.parametrize("variant", [*BASES, "smollm3"])
@pytest.mark.parametrize("activation", ["tanh", "none"])
@torch.no_grad()
def test_it_is_the_formula_on_a_plain_network(variant, activation):
    method = LlamaAdapter(prompt_length=4, layers=2, gate_activation=activation)
    backbone, network = make_backbone(variant), make_network(variant)
    tensors, ids = random_tensors(method, backbone), random_ids(15)
    gate_name = "gate" if activation == "tanh" else "adaption_gate"
    gates = {i: 3 * tensors[f"layers.{i}.self_attn.{gate_name}"] for i in (1, 2)}
    tensors |= {f"layers.{i}.self_attn.{gate_name}": gate for i, gate in gates.items()}
    acting = {i: torch.tanh(gate) if activation == "tanh" else gate for i, gate in gates.items()}
    prompts = {i: tensors[f"layers.{i}.self_attn.adaption_prompt"] for i in (1, 2)}
    add_prompts(network, prompts, acting)
    theirs = network(ids[None]).logits[0]
    assert (theirs - run(backbone, ids)).abs().max() > 1e-2
    _close(run_alone(backbone, ids, method=method, tensors=tensors), theirs)


@pytest.mark.parametrize("variant", IN_PEFT)
@pytest.mark.parametrize("activation", ["tanh", "none"])
@torch.no_grad()
def test_peft_reads_ours_with_equal_logits(variant, activation, tmp_path):
    method = LlamaAdapter(prompt_length=3, layers=2, gates="layer", gate_activation=activation)
    backbone = make_backbone(variant)
    tensors, ids = random_tensors(method, backbone), random_ids(15)
    _save(tmp_path, method, backbone, tensors)
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    expected = theirs(ids[None]).logits[0]
    assert (expected - run(backbone, ids)).abs().max() > 1e-3
    _close(run_alone(backbone, ids, method=method, tensors=tensors), expected)


@pytest.mark.parametrize("variant", IN_PEFT)
@torch.no_grad()
def test_we_read_what_peft_wrote_with_equal_logits_and_can_go_on(variant, tmp_path):
    config = peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(make_network(variant), config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("adaption_gate"):
            parameter.fill_(1.7)  # no tanh gives that
    theirs.save_pretrained(tmp_path)
    backbone, ids = make_backbone(variant), random_ids(15)
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    expected = theirs(ids[None]).logits[0]
    assert (expected - run(backbone, ids)).abs().max() > 1e-2
    _close(run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors), expected)
    again = load_training_tensors(tmp_path, shape=backbone.shape)
    assert again.method.tensors(backbone.shape).keys() == again.tensors.keys()


@torch.no_grad()
def test_heads_that_agree_are_pefts_and_heads_that_differ_our_own(tmp_path):
    method, backbone, ids = LlamaAdapter(prompt_length=3), make_backbone("llama"), random_ids(9)
    tensors = random_tensors(method, backbone)
    _save(tmp_path / "own", method, backbone, tensors)
    assert not (tmp_path / "own" / "adapter_config.json").exists()
    for name in tensors:
        if name.endswith(".gate"):
            tensors[name] = torch.full((4,), 0.4)
    _save(tmp_path / "peft", method, backbone, tensors)
    assert (tmp_path / "peft" / "adapter_config.json").exists()
    loaded = load_artifact(tmp_path / "peft", shape=backbone.shape)
    assert loaded.method == method
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    finished = method.finish(tensors, backbone.base)
    assert loaded.tensors.keys() == finished.keys()
    assert all(loaded.tensors[name].equal(finished[name]) for name in finished)
    _close(run_alone(backbone, ids, method=method, tensors=loaded.tensors), ours)
    theirs = peft.PeftModel.from_pretrained(make_network("llama"), tmp_path / "peft").eval()
    _close(ours, theirs(ids[None]).logits[0])


@pytest.mark.parametrize("variant", ["llama-biased-tied", "qwen3", "phi3"])
def test_where_peft_computes_something_else_its_form_is_neither_written_nor_read(variant, tmp_path):
    backbone = make_backbone(variant)
    method = LlamaAdapter(prompt_length=2, gates="layer", gate_activation="none")
    tensors = random_tensors(method, backbone)
    _save(tmp_path, method, backbone, tensors)
    assert not (tmp_path / "adapter_config.json").exists()
    config = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 2, "adapter_layers": 1}
    with pytest.raises(InvalidRequest, match="differently") as caught:
        LlamaAdapter.from_peft(config, tensors, backbone.shape)
    assert caught.value.code == "unsupported_adapter"


def test_all_but_two_layers_is_clamped_and_more_than_there_are_is_refused():
    shape = make_backbone("llama").shape
    assert list(LlamaAdapter().prompted(shape)) == [2]
    one = Shape(**shape.model_dump(exclude={"layers"}), layers=1)
    assert list(LlamaAdapter().prompted(one)) == [0]
    assert list(LlamaAdapter(layers=2).prompted(shape)) == [1, 2]
    with pytest.raises(InvalidRequest, match="4, but this base has 3") as caught:
        LlamaAdapter(layers=4).tensors(shape)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "peft.layers")


def test_the_count_is_that_of_the_paper():
    shape = make_backbone("qwen2").shape
    method = LlamaAdapter(prompt_length=5, layers=2)
    assert method.parameters(shape) == 2 * (5 * shape.hidden + shape.heads)


@pytest.mark.parametrize("gates", ["head", "layer"])
def test_training_lowers_the_loss(gates):
    method = LlamaAdapter(layers=3, gates=gates)
    assert falls(train_ours(method, make_backbone("qwen2"), rate=3e-2, steps=40))
