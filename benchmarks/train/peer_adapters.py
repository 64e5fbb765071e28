"""The peer's side for bottlenecks: AdapterHub's `adapters`, in an environment of its own."""

import json
from pathlib import Path

import adapters
import torch
from adapters import BnConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.sides import JSON, serve
from benchmarks.train.protocol import CONFIG_FILE, START_FILE
from benchmarks.train.trainer import give_float32_masters, run

NAME = "benchmark"
SUBLAYERS = {"self_attn": "attention_adapters", "mlp": "output_adapters"}
TENSORS = {
    "adapter_down": "adapter_down.0.weight",
    "adapter_down_bias": "adapter_down.0.bias",
    "adapter_up": "adapter_up.weight",
    "adapter_up_bias": "adapter_up.bias",
}


def answer(question: JSON) -> JSON:
    """Train what the question says and return what was measured."""
    return run(question, build=build)


def build(question: JSON) -> nn.Module:
    """Load the base, put bottlenecks behind its sublayers, and start them from our tensors."""
    folder = Path(question["start_folder"])
    method = json.loads((folder / CONFIG_FILE).read_bytes())
    model = load_base(question["base_folder"], dtype=getattr(torch, question["dtype"]))
    adapters.init(model)
    config = BnConfig(
        mh_adapter=True,
        output_adapter=True,
        reduction_factor=model.config.hidden_size / method["size"],
        non_linearity=method["activation"],
    )
    model.add_adapter(NAME, config=config)
    model.train_adapter(NAME)
    if question["layout"]["autocast"]:
        give_float32_masters(model)
    start_from(model, load_file(folder / START_FILE))
    return model


def load_base(folder: str, *, dtype: torch.dtype) -> nn.Module:
    """Load the network; an older transformers looks elsewhere for the base of RoPE."""
    config = AutoConfig.from_pretrained(folder)
    written = json.loads((Path(folder) / "config.json").read_bytes())
    theta = (written.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        config.rope_theta = theta
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)
    model.config.use_cache = False
    return model


def start_from(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy our tensors into the adapters; `KeyError` if one has no place there."""
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if f".{NAME}." in name
    }
    for name, tensor in tensors.items():
        block, sublayer, ours = name.rsplit(".", 2)
        theirs = f"model.{block}.{SUBLAYERS[sublayer]}.adapters.{NAME}.{TENSORS[ours]}"
        parameters.pop(theirs).data.copy_(tensor)
    if parameters:
        raise KeyError(f"Not started: {sorted(parameters)[:3]}")


if __name__ == "__main__":
    serve(answer)
