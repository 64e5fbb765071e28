"""Hugging Face PEFT as the oracle: it reads ours, we read its, and training goes the same way."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import Corrupt, InvalidRequest
from models.nn.artifact import load_artifact, save_artifact
from models.nn.backbone import Backbone
from models.nn.executors import Segment, Segments
from models.nn.loss import next_token_loss
from models.nn.methods.ia3 import IA3
from models.nn.methods.lora import Lora
from models.nn.terms import Terms
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

BASES = ["llama-biased-tied", "qwen2", "qwen3", "phi3"]
OURS = [
    Lora(rank=4, alpha=8),
    Lora(rank=3, alpha=5, use_rslora=True, target_modules=("o_proj", "layers.1.mlp.down_proj")),
    IA3(),
]
ATTENTION = ["q_proj", "k_proj", "v_proj"]
THEIRS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear"),
    "lora-some": peft.LoraConfig(r=2, target_modules=ATTENTION, layers_to_transform=[0, 2]),
    "lora-pattern": peft.LoraConfig(r=2, target_modules=r".*\.(q_proj|up_proj)"),
    "rslora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["down_proj"]),
    "ia3": peft.IA3Config(
        target_modules=[*ATTENTION, "down_proj"], feedforward_modules=["down_proj"]
    ),
    "ia3-attention": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
}


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", OURS, ids=["lora", "rslora", "ia3"])
@torch.no_grad()
def test_peft_reads_ours_with_equal_logits(variant, method, tmp_path):
    backbone = make_backbone(variant)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    ids = random_ids(15)
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    _close(run_alone(backbone, ids, method=method, tensors=tensors), theirs(ids[None]).logits[0])


@pytest.mark.parametrize(
    ("targets", "feedforward"),
    [
        (["layers.1.self_attn.k_proj", "down_proj"], ["down_proj"]),
        (["o_proj", "down_proj"], ["o_proj", "layers.0.mlp.down_proj"]),
    ],
    ids=["some of the targets", "some of the feed-forward"],
)
@torch.no_grad()
def test_peft_reads_an_ia3_that_acts_in_some_layers(targets, feedforward, tmp_path):
    backbone, ids = make_backbone("qwen2"), random_ids(15)
    method = IA3(target_modules=targets, feedforward_modules=feedforward)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    theirs = peft.PeftModel.from_pretrained(make_network("qwen2"), tmp_path).eval()
    _close(run_alone(backbone, ids, method=method, tensors=tensors), theirs(ids[None]).logits[0])


@pytest.mark.parametrize("variant", ["llama-biased-tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_we_read_what_peft_wrote_with_equal_logits(variant, name, tmp_path):
    torch.manual_seed(1)
    theirs = peft.get_peft_model(make_network(variant), THEIRS[name]).eval()
    for parameter_name, parameter in theirs.named_parameters():
        if "lora_" in parameter_name or "ia3_" in parameter_name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    backbone = make_backbone(variant)
    ids = random_ids(15)
    expected = theirs(ids[None]).logits[0]
    assert (expected - run(backbone, ids)).abs().max() > 1e-3
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    _close(run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors), expected)
    assert loaded.provenance == {}


@pytest.mark.parametrize("method", OURS[::2], ids=["lora", "ia3"])
def test_twenty_steps_lose_as_peft_with_a_plain_loop_loses(method, tmp_path):
    backbone = Backbone(make_network("qwen2"))
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    theirs = peft.PeftModel.from_pretrained(make_network("qwen2"), tmp_path, is_trainable=True)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == method.parameters(backbone.shape)
    own = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    optimizers = [torch.optim.AdamW(each, lr=3e-3) for each in (own.values(), trained)]
    losses = []
    for step in range(20):
        ids = random_ids(24, seed=step % 4)
        executor = Segments([Segment(0, 24, Terms.of(method, own, backbone.base))])
        ours = next_token_loss(run(backbone, ids, executor=executor)[:-1], ids[1:]) / 23
        loss = theirs(ids[None], labels=ids[None]).loss
        losses.append((ours.item(), loss.item()))
        for optimizer, value in zip(optimizers, (ours, loss), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    ours_curve, their_curve = zip(*losses, strict=True)
    assert ours_curve == pytest.approx(their_curve, rel=1e-5)
    assert ours_curve[16] < ours_curve[0] - 0.01  # the same rows again


@pytest.mark.parametrize(
    "setting",
    [
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"a_setting_of_tomorrow": 3},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_changes_the_meaning_of_a_file_is_refused_by_name(setting, tmp_path):
    backbone = _save_bare(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(InvalidRequest, match=next(iter(setting))) as caught:
        load_artifact(tmp_path, shape=backbone.shape)
    assert caught.value.code == "unsupported_adapter"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.LoraConfig(r=2, target_modules=["lm_head"]), "lora"),
        (peft.LoraConfig(r=2, target_modules=["lm_head"], use_dora=True), "dora"),
        (peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[]), "ia3"),
    ],
    ids=["lora", "dora", "ia3"],
)
def test_a_weight_of_the_base_beside_an_adapter_is_refused_with_the_way_out(config, kind, tmp_path):
    theirs = peft.get_peft_model(make_network("llama"), config)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        theirs.save_pretrained(tmp_path)
    shape = make_backbone("llama").shape
    with pytest.raises(InvalidRequest, match="save_embedding_layers=False"):
        load_artifact(tmp_path, shape=shape)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_artifact(tmp_path, shape=shape).method
    assert (loaded.kind, loaded.target_modules) == (kind, ("lm_head",))


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "q_proj"]])
@pytest.mark.parametrize("beside", [False, True])
def test_an_update_of_the_embedding_is_refused_as_what_it_is(targets, beside, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=targets)
    theirs = peft.get_peft_model(make_network("llama"), config)
    theirs.save_pretrained(tmp_path, save_embedding_layers=beside)
    with pytest.raises(InvalidRequest, match="update of the embedding") as caught:
        load_artifact(tmp_path, shape=make_backbone("llama").shape)
    assert caught.value.code == "unsupported_adapter"


def test_other_types_are_refused(tmp_path):
    backbone = _save_bare(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "BOFT"}')
    with pytest.raises(InvalidRequest, match="BOFT"):
        load_artifact(tmp_path, shape=backbone.shape)


@pytest.mark.parametrize("change", ["extra", "missing", "no-rank", "bad-rank"])
def test_tensors_that_do_not_fit_their_configuration_are_corrupt(change, tmp_path):
    backbone = _save_bare(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if change == "extra":
        tensors["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.ones(4, 32)
    elif change == "missing":
        tensors.popitem()
    elif change == "no-rank":
        del config["r"]
    else:
        config["r"] = 5
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Corrupt):
        load_artifact(tmp_path, shape=backbone.shape)


def _save_bare(folder):
    backbone = make_backbone("llama")
    save_artifact(
        folder,
        method=OURS[0],
        tensors=random_tensors(OURS[0], backbone),
        base=backbone.base,
        provenance={"base": "tiny"},
    )
    (folder / "graftwork.json").unlink()
    return backbone
