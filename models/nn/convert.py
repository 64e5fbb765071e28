"""Models of others as folders in Hugging Face's format, without pickles, code or quantisation."""

import io
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from core.errors import InvalidRequest
from models.nn.backbone import refuse_unknown_family
from models.nn.shape import Shape

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "*.safetensors",
)
"""What is taken of a folder or repository."""


def import_folder(source: Path, folder: Path) -> None:
    """Copy a model in Hugging Face's format: weights as safetensors, a fast tokenizer, no code.

    `InvalidRequest` for a folder that is not one, or whose family is not supported.
    """
    for required in ("config.json", "tokenizer.json"):
        if not (source / required).is_file():
            raise InvalidRequest(f"{source} has no {required}.", code="unsupported_base")
    if not any(source.glob("*.safetensors")):
        raise InvalidRequest(
            f"{source} has no safetensors file; pickles are never read.", code="unsupported_base"
        )
    refuse_unknown_family(AutoConfig.from_pretrained(source, local_files_only=True))
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in FILES:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)


def convert_gguf(gguf: Path, *, folder: Path) -> None:
    """Write the model in a GGUF file as a folder in Hugging Face's format, in bfloat16.

    The weights are those of the quantised file, so the folder says nothing of quantisation.
    """
    transformers.utils.logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with redirect_stderr(io.StringIO()):  # a progress bar that no switch turns off
        network = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    fields = network.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        fields.pop(name, None)
    config = type(network.config).from_dict(fields)
    refuse_unknown_family(config)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(network.state_dict())
    plain.generation_config = network.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)


def read_shape(folder: Path) -> Shape:
    """Return the shape of the model in a folder, without reading its weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return Shape.of(AutoModelForCausalLM.from_config(config))
