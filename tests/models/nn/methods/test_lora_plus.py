"""LoRA+ against PEFT's own optimiser for it."""

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from models.nn.artifact import save_artifact
from models.nn.methods.lora import Lora
from tests.models.nn.families import make_backbone, make_network, random_tensors
from tests.models.nn.methods.learning import train, train_ours

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
METHOD = Lora(rank=4, alpha=8, learning_rate_ratio=16)


def test_only_b_learns_faster():
    assert METHOD.learning_rate_scale("layers.0.mlp.up_proj.lora_B") == 16
    assert METHOD.learning_rate_scale("layers.0.mlp.up_proj.lora_A") == 1
    assert Lora().learning_rate_scale("layers.0.mlp.up_proj.lora_B") == 1


def test_twenty_steps_lose_as_peft_s_loraplus_loses(tmp_path):
    backbone = make_backbone("qwen2")
    tensors = METHOD.init(backbone.base, torch.Generator().manual_seed(0))
    save_artifact(
        tmp_path, method=METHOD, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    theirs = peft.PeftModel.from_pretrained(make_network("qwen2"), tmp_path, is_trainable=True)
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=5e-4, loraplus_lr_ratio=16, weight_decay=0.0
    )
    theirs_curve = train(lambda ids: theirs(ids[None], labels=ids[None]).loss, optimizer, steps=20)
    ours = train_ours(METHOD, backbone, tensors=tensors, rate=5e-4)
    plain = train_ours(Lora(rank=4, alpha=8), backbone, tensors=tensors, rate=5e-4)
    assert ours == pytest.approx(theirs_curve, rel=2e-5)
    assert ours[16] < plain[16] - 0.01


def test_its_files_are_those_of_lora(tmp_path):
    backbone = make_backbone("llama")
    stored = []
    for method in (METHOD, Lora(rank=4, alpha=8)):
        folder = tmp_path / str(method.learning_rate_ratio)
        save_artifact(
            folder,
            method=method,
            tensors=random_tensors(method, backbone),
            base=backbone.base,
            provenance={"base": "tiny"},
        )
        names = ("adapter_model.safetensors", "adapter_config.json")
        stored.append([(folder / name).read_bytes() for name in names])
    assert stored[0] == stored[1]
