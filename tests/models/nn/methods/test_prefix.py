"""Prefix tuning against Hugging Face PEFT's, both ways, and where it starts."""

import json

import peft
import pytest
import torch

from core.errors import Corrupt, InvalidRequest
from models.nn.artifact import load_artifact, save_artifact
from models.nn.methods import parse_posted
from models.nn.methods.prefix import GATE, PREFIX, Prefix
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)
from tests.models.nn.methods.worded import Worded, train

# PEFT 0.21 uses names that Transformers 5.24 renamed.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    ),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
]

BASES = ["llama-biased-tied", "qwen3", "phi3", "gemma", "gemma2", "gemma3", "smollm3"]
OURS = {
    "plain": Prefix(prefix_length=4),
    "random": Prefix(prefix_length=3, init="random"),
    "reparametrised": Prefix(prefix_length=3, reparametrisation=True, hidden_size=6),
}


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_peft_reads_ours_with_equal_logits(variant, name, tmp_path):
    method, backbone, ids = OURS[name], make_backbone(variant), random_ids(15)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    _close(ours, theirs(ids[None]).logits[0])


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("projection", [False, True])
@torch.no_grad()
def test_we_read_what_peft_wrote_with_equal_logits(variant, projection, tmp_path):
    torch.manual_seed(1)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        prefix_projection=projection,
        encoder_hidden_size=7 if projection else None,
    )
    theirs = peft.get_peft_model(make_network(variant), config).eval()
    theirs.save_pretrained(tmp_path)
    backbone, ids = make_backbone(variant), random_ids(15)
    expected = theirs(ids[None]).logits[0]
    assert (expected - run(backbone, ids)).abs().max() > 1e-3
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    _close(run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors), expected)


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("reparametrisation", [False, True])
@torch.no_grad()
def test_a_text_that_starts_a_prefix_acts_as_the_text_would(variant, reparametrisation):
    backbone, text, ids = make_backbone(variant), random_ids(5, seed=3), random_ids(12)
    method = Prefix(
        prefix_length=5, init_ids=tuple(text.tolist()), reparametrisation=reparametrisation
    )
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    expected = make_network(variant)(torch.cat([text, ids])[None]).logits[0, 5:]
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_gated_prefix_is_a_second_softmax_over_unrotated_keys():
    network, backbone, ids = make_network("llama"), make_backbone("llama"), random_ids(9)
    method = Prefix(prefix_length=4, zero_gate=True)
    tensors = random_tensors(method, backbone)
    rows = tensors[PREFIX].view(4, 3, 2, 2, 8)  # p, layer, key or value, head, dimension
    handles = []
    for layer, block in enumerate(network.model.layers):
        keys, values = (
            side.permute(1, 0, 2).repeat_interleave(2, dim=0) for side in rows[:, layer].unbind(1)
        )

        def add(module, args, keys=keys, values=values, layer=layer):
            (heads,) = args
            hidden = module.seen
            query = network.model.layers[layer].self_attn.q_proj(hidden).view(9, 4, 8)
            cos, sin = network.model.rotary_emb(hidden, torch.arange(9)[None])
            first, second = query.split(4, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
            query = (query * cos[0, :, None] + turned * sin[0, :, None]).transpose(0, 1)
            weights = (query @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
            own = torch.tanh(tensors[GATE][layer])[:, None, None] * (weights @ values)
            return (heads + own.transpose(0, 1).reshape(1, 9, 32),)

        def see(module, args, kwargs):
            module.o_proj.seen = kwargs["hidden_states"]

        handles.append(block.self_attn.register_forward_pre_hook(see, with_kwargs=True))
        handles.append(block.self_attn.o_proj.register_forward_pre_hook(add))
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    _close(ours, network(ids[None]).logits[0])
    assert (ours - run(backbone, ids)).abs().max() > 1e-3


def test_a_gated_prefix_is_stored_in_our_form(tmp_path):
    method, backbone = Prefix(prefix_length=2, zero_gate=True), make_backbone("llama")
    tensors = random_tensors(method, backbone)
    save_artifact(tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={})
    assert not (tmp_path / "adapter_config.json").exists()
    assert load_artifact(tmp_path, shape=backbone.shape).tensors.keys() == {PREFIX, GATE}


def test_noise_is_as_large_as_real_keys_and_values_are():
    base = make_backbone("qwen2").base
    method = Prefix(prefix_length=64, init="random")
    noise = method.init(base, torch.Generator().manual_seed(0))[PREFIX].view(64, 6, -1)
    pairs = base.keys_values(torch.arange(64), positions=torch.arange(64))
    for index, side in enumerate(side for pair in pairs for side in pair):
        assert noise[:, index].std().item() == pytest.approx(side.std().item(), rel=0.25)


def test_the_count_of_the_docstring_is_that_of_the_tensors():
    shape, p, m, d = make_backbone("llama").shape, 5, 7, 32
    f = 2 * 3 * 2 * 8
    assert Prefix(prefix_length=p).parameters(shape) == p * f
    gated = Prefix(prefix_length=p, zero_gate=True, reparametrisation=True, hidden_size=m)
    assert gated.parameters(shape) == p * d + m * d + m + f * m + f + 4 * 3


def test_adapting_looks_up_the_text():
    problem = Worded(Prefix(prefix_length=6, init_text="a good film"))
    method = problem.method.adapt(problem, torch.Generator())
    assert list(method.init_ids) == (problem.encode("a good film") * 6)[:6]


def test_more_than_half_of_the_context_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        Prefix(prefix_length=65).tensors(make_backbone("llama").shape)
    assert caught.value.param == "peft.prefix_length"


def test_a_prefix_whose_length_is_not_what_its_file_says_is_corrupt(tmp_path):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    peft.get_peft_model(make_network("llama"), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_virtual_tokens": 4}))
    with pytest.raises(Corrupt, match="dimensions"):
        load_artifact(tmp_path, shape=make_backbone("llama").shape)


@pytest.mark.parametrize(
    "method", [*OURS.values(), Prefix(prefix_length=4, zero_gate=True)], ids=[*OURS, "gated"]
)
def test_training_lowers_a_real_loss(method):
    problem = Worded(method)
    tensors = method.init(problem.base, torch.Generator().manual_seed(0))
    losses = train(problem, tensors, steps=60, rate=1e-2)
    assert losses[-1] < losses[0] - 0.05


def test_the_tokens_of_the_text_are_not_posted():
    with pytest.raises(InvalidRequest, match="leave it out") as caught:
        parse_posted({"type": "prefix", "init_ids": [3]})
    assert caught.value.param == "peft.init_ids"
    assert Prefix.model_json_schema()["properties"]["init_ids"]["readOnly"]
