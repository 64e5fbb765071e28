import gc
import sys
from pathlib import Path

import pytest
import torch
import transformers

from core.errors import InvalidRequest
from models.nn import backbone as module
from models.nn.attention import PackedCausal
from models.nn.backbone import Backbone, pick_dtype
from models.nn.executors import NOBODY
from models.nn.leaves import ActivationLeaf
from tests.models.nn.families import VARIANTS, make_backbone, make_network, random_ids, run
from tests.tiny import make_tiny_base


def test_every_admitted_family_is_tried_here():
    tried = {make_network(variant).config.model_type for variant in VARIANTS}
    assert tried == module.FAMILIES


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_activation_of_every_family_is_a_leaf(variant):
    backbone = make_backbone(variant)
    leaves = [each for each in backbone.network.modules() if isinstance(each, ActivationLeaf)]
    assert len(leaves) == backbone.shape.layers


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_packed_sequences_equal_the_unchanged_network_on_each_alone(variant):
    network = make_network(variant)
    ids = random_ids(40)
    lengths = (17, 6, 1, 16)
    expected = torch.cat([network(part[None]).logits[0] for part in ids.split(lengths)])
    logits = run(Backbone(network), ids, lengths=lengths)
    torch.testing.assert_close(logits, expected, atol=4e-6, rtol=1e-5)


def test_other_families_are_refused():
    network = transformers.AutoModelForCausalLM.from_config(
        transformers.Olmo2Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
    )
    with pytest.raises(InvalidRequest, match="olmo2") as caught:
        Backbone(network)
    assert caught.value.code == "unsupported_base"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_base_is_frozen_and_has_the_dtype_asked_for(tmp_path, dtype):
    backbone = Backbone.load(make_tiny_base(tmp_path), dtype=dtype)
    assert not backbone.network.training
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    logits = run(backbone, torch.arange(9))
    assert logits.dtype == backbone.dtype == dtype
    assert logits.shape == (9, backbone.shape.vocab)


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_base_keeps_no_file_mapped(tmp_path, dtype):
    folder = make_tiny_base(tmp_path)
    backbone = Backbone.load(folder, dtype=dtype)
    gc.collect()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert backbone.dtype == dtype


def test_the_view_for_methods_shows_effective_values_in_float32():
    backbone = make_backbone("gemma", dtype=torch.bfloat16)
    place = "layers.1.self_attn.k_proj"
    assert backbone.base.weight(place).shape == backbone.shape.linears[place]
    assert backbone.base.weight(place).dtype == torch.float32
    assert backbone.base.bias(place) is None
    norm = backbone.network.model.norm
    torch.testing.assert_close(backbone.base.gain("norm"), 1 + norm.weight.float())
    ids = random_ids(3)
    embedded = backbone.base.embed(ids)
    expected = backbone.network.model.embed_tokens(ids).float()
    assert torch.equal(embedded, expected)


def test_the_shape_is_that_of_the_network_and_survives_json():
    shape = make_backbone("qwen3").shape
    assert shape.tied
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (
        32,
        3,
        4,
        2,
        16,
    )
    assert shape.linears["layers.0.self_attn.k_proj"] == (32, 32)
    assert shape.linears["lm_head"] == (shape.vocab, 32)
    assert len(shape.norms) == 2 * 3 + 1
    assert type(shape).model_validate_json(shape.model_dump_json()) == shape


def test_fused_places_know_their_parts():
    parts = make_backbone("phi3").shape.parts
    assert parts["layers.2.self_attn.qkv_proj"] == {
        "q_proj": (0, 32),
        "k_proj": (32, 48),
        "v_proj": (48, 64),
    }
    assert parts["layers.2.mlp.gate_up_proj"] == {"gate_proj": (0, 48), "up_proj": (48, 96)}


def test_attention_outside_a_forward_fails_loudly():
    backbone = make_backbone("llama")
    with pytest.raises((LookupError, RuntimeError)):
        backbone.network(random_ids(3)[None])


def test_a_fault_in_a_forward_leaves_the_next_one_untouched():
    backbone = make_backbone("llama")
    ids = random_ids(5)
    expected = run(backbone, ids)
    with pytest.raises(ValueError, match="rows"):
        backbone.hidden(
            ids, positions=torch.arange(5), attention=PackedCausal([(0, 4)]), executor=NOBODY
        )
    assert torch.equal(run(backbone, ids), expected)


def test_the_picked_dtype_is_one_the_processor_is_fast_in():
    fast = torch.cpu.get_capabilities().get("avx512_bf16")
    assert pick_dtype() == (torch.bfloat16 if fast else torch.float32)
    assert pick_dtype("cuda") == torch.bfloat16


def test_a_view_apart_shares_weights_and_never_sees_replaced_ones():
    backbone = make_backbone("llama")
    apart = backbone.base.apart()
    name = "model.layers.0.self_attn.q_proj.weight"
    held = torch.full(backbone.shape.parameters[name], 7.0)
    replaced = torch.nn.Parameter(held, requires_grad=False)
    seen = []

    class Looking:
        def attend(self, layer, query_hth, *_, **__):
            seen.append((apart.parameter(name), backbone.network.get_parameter(name)))
            return query_hth.transpose(0, 1)

    backbone.using({name: replaced}).hidden(
        torch.arange(3), positions=torch.arange(3), attention=Looking(), executor=NOBODY
    )
    own, of_network = seen[0]
    assert torch.equal(of_network, replaced)
    assert torch.equal(own, backbone.base.parameter(name))
    assert own.data_ptr() == backbone.base.parameter(name).data_ptr()


@pytest.mark.parametrize("variant", ["llama", "llama-biased-tied", "gemma3"])
def test_the_token_that_others_pad_with_is_learnt_like_any_other(variant):
    backbone, name, ids = make_backbone(variant), "model.embed_tokens.weight", random_ids(9)
    ids[4] = backbone.config.pad_token_id
    alike = ids.clone()
    alike[4] = next(token for token in range(len(ids) + 1) if token not in ids)
    table = backbone.base.parameter(name).clone()
    table[alike[4]] = table[ids[4]]  # another token with the same embedding
    for apart in (False, True):
        found = []
        for given in (ids, alike):
            weight = table.clone().requires_grad_()
            changed = backbone.using({name: weight})
            states = run(changed.without_flat() if apart else changed, given)
            found.append(torch.autograd.grad(states.square().sum(), weight)[0][given[4]])
        assert found[0].any()
        torch.testing.assert_close(*found)
