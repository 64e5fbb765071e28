"""LN tuning against PEFT: it reads ours, we read its, offset gains included."""

import peft
import pytest
import torch

from core.errors import InvalidRequest
from models.nn.artifact import load_artifact, save_artifact
from models.nn.methods.ln_tuning import LnTuning
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)

pytestmark = [
    # PEFT 0.21 reads an attribute that Transformers 5.24 renamed, and knows LayerNorm by name only.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]
BASES = ["llama-biased-tied", "qwen3", "gemma", "gemma2", "phi3"]


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("targets", ["all-norms", ("input_layernorm",)])
@torch.no_grad()
def test_peft_reads_ours_with_equal_logits(variant, targets, tmp_path):
    backbone, ids = make_backbone(variant), random_ids(15)
    method = LnTuning(target_modules=targets)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    torch.testing.assert_close(ours, theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", BASES)
@torch.no_grad()
def test_we_read_what_peft_wrote_with_equal_logits(variant, tmp_path):
    names = ["input_layernorm", "post_attention_layernorm", "norm"]
    theirs = peft.get_peft_model(make_network(variant), peft.LNTuningConfig(target_modules=names))
    torch.manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if "ln_tuning_layers" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path)
    backbone, ids = make_backbone(variant), random_ids(15)
    expected = theirs(ids[None]).logits[0]
    assert (expected - run(backbone, ids)).abs().max() > 1e-3
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    ours = run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_count_is_that_of_the_formula():
    shape = make_backbone("llama").shape
    assert LnTuning().parameters(shape) == (2 * shape.layers + 1) * shape.hidden


def test_norms_of_single_heads_beside_others_are_refused_by_name(tmp_path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["q_norm", "norm"])
    peft.get_peft_model(make_network("qwen3"), config).save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match=r"layers\.0\.self_attn\.q_norm") as caught:
        load_artifact(tmp_path, shape=make_backbone("qwen3").shape)
    assert caught.value.code == "unsupported_adapter"
