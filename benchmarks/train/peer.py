"""The peer's side: Hugging Face peft and transformers' Trainer, in a layout that it is told."""

import json
from pathlib import Path

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.sides import JSON, serve
from benchmarks.train.protocol import CONFIG_FILE, FULL, P_TUNING, PISSA, START_FILE
from benchmarks.train.trainer import give_float32_masters, run


def answer(question: JSON) -> JSON:
    """Train what the question says and return what was measured."""
    return run(question, build=build)


def build(question: JSON) -> nn.Module:
    """Load the base, put the adapter on it, and start it from the tensors that we start from.

    All weights are trained from float32 masters, as ours are; adapters stand on a base in `dtype`.
    """
    form = question["form"]
    dtype = torch.float32 if form == FULL else getattr(torch, question["dtype"])
    model = AutoModelForCausalLM.from_pretrained(question["base_folder"], dtype=dtype)
    model.config.use_cache = False
    if form == FULL:
        return model
    folder = Path(question["start_folder"])
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    tensors = load_file(folder / START_FILE)
    peft_model = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]](**config))
    if question["layout"]["autocast"]:
        give_float32_masters(peft_model)
    if form == P_TUNING:
        peft_model.prompt_encoder["default"].load_state_dict(tensors)
        return peft_model
    set_peft_model_state_dict(peft_model, tensors)
    held = get_peft_model_state_dict(peft_model)
    if held.keys() != tensors.keys() or not all(
        held[name].equal(tensor.to(held[name].dtype)) for name, tensor in tensors.items()
    ):
        raise ValueError(f"PEFT did not take over all of {sorted(tensors)[:3]} ...")
    if form == PISSA:
        _subtract(peft_model)
    return peft_model


@torch.no_grad()
def _subtract(model: nn.Module) -> None:
    """Take B A off each weight, as PEFT's own PiSSA initialisation does."""
    for module in model.modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            module.get_base_layer().weight -= module.get_delta_weight("default")


if __name__ == "__main__":
    serve(answer)
