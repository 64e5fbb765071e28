"""The README.md of an export: a model card as the Hugging Face hub reads it."""

import json
import re
from collections import Counter
from inspect import cleandoc
from pathlib import Path
from typing import Any

from safetensors import safe_open

from api.schemas.catalog import ModelCard
from core.bases import REPOSITORIES
from models.adapter_files import PEFT_CONFIG, PROVENANCE, TENSORS, TRAINING_TENSORS
from models.nn.methods import METHODS

LICENCES = {"smollm2-135m-instruct": "apache-2.0"}
"""Under what licence the bases are published that `graftwork pull` knows."""
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.|$)")


def render(card: ModelCard, folder: Path) -> str:
    """Return the card of the adapter whose files lie in `folder`; equal inputs give equal text."""
    provenance, peft = _read(folder / PROVENANCE), (folder / PEFT_CONFIG).is_file()
    method = card.graftwork.method or {}
    kind, count = str(method.get("type")), card.graftwork.parameters or 0
    base = card.graftwork.base
    repository, licence = REPOSITORIES.get(base, base), LICENCES.get(base, "unknown")
    parts = [
        _front_matter(repository, licence=licence, kind=kind, peft=peft),
        f"# {card.id}",
        f"A `{kind}` adapter of {count:,} parameters for the frozen base `{repository}`.",
        _facts(card, provenance),
        _section("Method", _code(method, "json")),
        _metrics(provenance),
        _section("How to load it", _peft_use(repository) if peft else ""),
        _graftwork_use(),
        _section("Files and tensors", _tensors(folder, kind=kind, peft=peft)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(repository: str, *, licence: str, kind: str, peft: bool) -> str:
    lines = [
        "---",
        f"base_model: {json.dumps(repository)}",
        f"library_name: {'peft' if peft else 'graftwork'}",
        f"license: {licence}",
        "tags:",
        "- graftwork",
        *(f"- {tag}" for tag in ([kind, "peft"] if peft else [kind])),
        "---",
    ]
    return "\n".join(lines)


def _facts(card: ModelCard, provenance: dict[str, Any]) -> str:
    source = card.graftwork.source or {}
    facts = {
        "base": card.graftwork.base,
        "base digest": provenance.get("base_digest"),
        "tokenizer and chat template digest": provenance.get("renderer_digest"),
        "training data digest": provenance.get("training_digest"),
        "validation data digest": provenance.get("validation_digest"),
        "continued from": provenance.get("parent_digest"),
        "seed": provenance.get("seed"),
        "adapter digest": card.graftwork.digest,
        "imported from": source.get("filename") and json.dumps(source["filename"]),
        "made on, as it says": source.get("base_model"),
    }
    rows = [f"| {name} | `{value}` |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _metrics(provenance: dict[str, Any]) -> str:
    metrics = provenance.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return ""
    rows = [f"| {name} | {value} |" for name, value in sorted(metrics.items())]
    return _section("Metrics", "\n".join(["| metric | value |", "|---|---|", *rows]))


def _peft_use(repository: str) -> str:
    code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({json.dumps(repository)})
model = PeftModel.from_pretrained(base, "path/to/this/folder")"""
    return f"With [PEFT](https://github.com/huggingface/peft):\n\n{_code(code, 'python')}"


def _graftwork_use() -> str:
    command = _code("graftwork adapters import path/to/this/folder", "sh")
    return (
        "With Graftwork, over the same base (a zip of this folder can also be posted to "
        f"`/v1/adapters`):\n\n{command}"
    )


def _tensors(folder: Path, *, kind: str, peft: bool) -> str:
    """Say what each file holds; the tensors of all layers are one row."""
    method = METHODS.get(kind)
    form = (
        "in the names of Hugging Face PEFT"
        if peft
        else "under Graftwork's own names: PEFT has no form for this kind"
    )
    said = [f"`{TENSORS}` holds the tensors that are served, {form}."]
    if (folder / TRAINING_TENSORS).is_file():
        said.append(f"`{TRAINING_TENSORS}` holds those that training goes on from.")
    if (folder / PROVENANCE).is_file():
        said.append(f"`{PROVENANCE}` has the method and where the adapter comes from.")
    counts: Counter[tuple[str, str, str]] = Counter()
    with safe_open(folder / TENSORS, framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            held = tensors.get_slice(name)
            size = " x ".join(map(str, held.get_shape())) or "scalar"
            counts[_NUMBERS.sub("*", name), size, held.get_dtype()] += 1
    rows = [
        f"| `{name}` | {size} | {dtype} | {count} |"
        for (name, size, dtype), count in sorted(counts.items())
    ]
    table = "\n".join(["| tensor | dimensions | type | count |", "|---|---|---|---|", *rows])
    about = cleandoc(method.__doc__ or "") if method else ""
    return "\n\n".join(filter(None, [" ".join(said), about, table]))


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else f"## {title}"


def _code(content: object, language: str) -> str:
    text = content if isinstance(content, str) else json.dumps(content, indent=2, sort_keys=True)
    return f"```{language}\n{text}\n```"


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
