"""DoRA against PEFT: it reads ours, we read its, and training goes the same way."""

from math import isfinite

import peft
import pytest
import torch

from core.errors import InvalidRequest
from models.nn.artifact import load_artifact, save_artifact
from models.nn.backbone import Backbone
from models.nn.methods.dora import Dora
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
from tests.models.nn.methods.learning import train, train_ours

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
BASES = ["llama-biased-tied", "qwen2", "qwen3", "phi3"]
METHODS = [
    Dora(rank=4, alpha=8),
    Dora(rank=3, alpha=5, use_rslora=True, target_modules=("o_proj", "layers.1.mlp.down_proj")),
]
MAGNITUDE = "lora_magnitude_vector"


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _save(folder, method, backbone, tensors):
    save_artifact(
        folder, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", METHODS, ids=["dora", "rslora"])
@torch.no_grad()
def test_peft_reads_ours_with_equal_logits(variant, method, tmp_path):
    backbone, ids = make_backbone(variant), random_ids(15)
    tensors = random_tensors(method, backbone)
    _save(tmp_path, method, backbone, tensors)
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    _close(run_alone(backbone, ids, method=method, tensors=tensors), theirs(ids[None]).logits[0])


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("targets", ["all-linear", ["o_proj", "down_proj"]])
@torch.no_grad()
def test_we_read_what_peft_wrote_with_equal_logits(variant, targets, tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=targets)
    torch.manual_seed(1)
    theirs = peft.get_peft_model(make_network(variant), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    backbone, ids = make_backbone(variant), random_ids(15)
    expected = theirs(ids[None]).logits[0]
    assert (expected - run(backbone, ids)).abs().max() > 1e-3
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    assert loaded.method.kind == "dora"
    _close(run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors), expected)


def test_twenty_steps_lose_as_peft_loses_so_the_norm_is_detached(tmp_path):
    method, backbone = METHODS[0], Backbone(make_network("qwen2"))
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    _save(tmp_path, method, backbone, tensors)
    theirs = peft.PeftModel.from_pretrained(make_network("qwen2"), tmp_path, is_trainable=True)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == method.parameters(backbone.shape)
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0)
    theirs_curve = train(lambda ids: theirs(ids[None], labels=ids[None]).loss, optimizer, steps=20)
    ours_curve = train_ours(method, backbone, tensors=tensors, rate=3e-3, steps=20)
    assert ours_curve == pytest.approx(theirs_curve, rel=2e-5)
    assert ours_curve[16] < ours_curve[0] - 0.01


@torch.no_grad()
def test_the_closed_form_of_the_norm_is_the_norm():
    method, backbone = METHODS[0], make_backbone("llama-biased-tied")
    tensors = random_tensors(method, backbone)
    terms = Terms.of(method, tensors, backbone.base)
    for place, term in terms.linears.items():
        down, up = (tensors[f"{place}.lora_{side}"].double() for side in "AB")
        dense = backbone.base.weight(place).double() + method.scale * up @ down
        expected = tensors[f"{place}.{MAGNITUDE}"].double() / torch.linalg.norm(dense, dim=1)
        torch.testing.assert_close(term.output_scale.double(), expected, atol=0, rtol=2e-6)


def test_rows_of_zeros_stay_finite():
    network = make_network("qwen2")
    with torch.no_grad():
        network.model.layers[0].self_attn.v_proj.weight[:3] = 0
    backbone, ids = Backbone(network), random_ids(9)
    tensors = METHODS[0].init(backbone.base, torch.Generator().manual_seed(0))
    logits = run_alone(backbone, ids, method=METHODS[0], tensors=tensors)
    assert torch.equal(logits, run(backbone, ids))
    assert all(isfinite(loss) for loss in train_ours(METHODS[0], backbone, steps=3))


def test_the_squares_of_the_base_are_summed_once(monkeypatch):
    backbone = make_backbone("llama")
    tensors = random_tensors(METHODS[0], backbone)
    Terms.of(METHODS[0], tensors, backbone.base)
    monkeypatch.setattr(torch.Tensor, "pow", None)
    Terms.of(METHODS[0], tensors, backbone.base)


@pytest.mark.parametrize("setting", [{"rank_pattern": {"q_proj": 8}}, {"bias": "all"}])
def test_what_changes_the_meaning_of_a_file_is_refused_by_name(setting):
    backbone = make_backbone("llama")
    config, stored = METHODS[0].to_peft(random_tensors(METHODS[0], backbone), backbone.shape)
    with pytest.raises(InvalidRequest, match=next(iter(setting))):
        Dora.from_peft(config | setting, stored, backbone.shape)


def test_a_file_without_magnitudes_is_not_dora():
    backbone = make_backbone("llama")
    config, stored = Lora(rank=2).to_peft(random_tensors(Lora(rank=2), backbone), backbone.shape)
    with pytest.raises(InvalidRequest):
        Dora.from_peft(config, stored, backbone.shape)


def test_the_count_is_that_of_lora_and_a_magnitude_for_each_output():
    shape = make_backbone("qwen2").shape
    outputs = sum(out for place, (out, _) in shape.linears.items() if place != "lm_head")
    assert Dora(rank=4).parameters(shape) == Lora(rank=4).parameters(shape) + outputs
