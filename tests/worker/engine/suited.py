"""A tiny base of sizes that the C++ step computes."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from core.bases import write_manifest
from core.settings import ServingSettings, Settings
from core.store import Store
from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from tests.tiny import make_tiny_base
from tests.worker.engine.conftest import BASE, World, engine_settings

BFLOAT16 = ServingSettings(dtype="bfloat16")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 272,
}


def suited_world(data: Path) -> World:
    """Return a world without adapters over such a base, which is kept in `data`."""
    settings = Settings(data_dir=data, base=BASE, engine=engine_settings(compute=BFLOAT16))
    make_tiny_base(settings.base_folder, seed=1, initializer_range=0.15, **SIZES)
    renderer = Renderer.load(settings.base_folder)
    _silence_padding(settings.base_folder, tokens=len(renderer.tokenizer))
    write_manifest(settings.base_folder, id=BASE, shape={}, renderer_digest=renderer.digest)
    backbone = Backbone.load(settings.base_folder, dtype=torch.bfloat16)
    return World(settings, backbone, renderer, [], Store(settings.store))


def _silence_padding(folder: Path, *, tokens: int) -> None:
    """Let nothing be drawn that is no token: the vocabulary was widened to whole panels."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        network.get_input_embeddings().weight[tokens:] = 0
    network.save_pretrained(folder)
