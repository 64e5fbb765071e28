"""Adapters from elsewhere, as the engine finds them: what PEFT wrote, and what is wrong."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM

from core.errors import Corrupt, NotFound
from models.nn.artifact import load_training_tensors
from models.nn.methods import METHODS
from models.wire import AdapterRef, InspectReply
from tests.tiny import make_tiny_base
from tests.worker.engine.conftest import World, ask, ask_all, order, put_adapter
from worker.engine import inspect as inspecting
from worker.engine.engine import Engine

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

THEIRS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}


@pytest.fixture
def engine(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine()


def by_peft(base: Path, folder: Path, config: Any) -> Path:
    """Save an adapter as PEFT does, its tensors far from neutral."""
    network = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), deepcopy(config))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return folder


def look(engine: Engine, world: World, folder: Path) -> InspectReply:
    return asyncio.run(engine.inspect(world.store.put_tree(folder)))


@pytest.mark.parametrize("kind", THEIRS)
def test_what_peft_wrote_fits_and_is_served(
    engine: Engine, world: World, tmp_path: Path, kind: str
) -> None:
    folder = by_peft(world.settings.base_folder, tmp_path / kind, THEIRS[kind])
    found = look(engine, world, folder)
    assert (found.problems, found.missing, found.unexpected, found.mismatched) == ([], [], [], [])
    assert found.method["type"] == kind
    assert set(found.matched) == set(load_file(folder / "adapter_model.safetensors"))
    assert found.parameters == sum(
        tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values()
    )
    adapter = AdapterRef("theirs", world.store.put_tree(folder))
    ours, base = ask_all(
        engine, [order("abc", adapter=adapter, logprobs=True), order("abc", logprobs=True)]
    )
    assert abs(ours.tokens[0][0].logprob - base.tokens[0][0].logprob) > 1e-3
    network = AutoModelForCausalLM.from_pretrained(world.settings.base_folder)
    theirs = peft.PeftModel.from_pretrained(network, folder).eval()
    prompt = world.renderer.completion_prompt("abc")
    written = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    assert ours.ids == written[0, len(prompt) :].tolist()[: len(ours.ids)]


@pytest.mark.parametrize("kind", METHODS)
def test_our_own_form_fits(engine: Engine, world: World, tmp_path: Path, kind: str) -> None:
    block = {"type": kind, **METHODS[kind].examples[0]}
    ref = put_adapter(world.store, tmp_path / kind, backbone=world.backbone, block=block, seed=1)
    found = asyncio.run(engine.inspect(ref.digest))
    assert found.problems == []
    assert found.method["type"] == kind


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"r": 3}, "r"),
        ({"lora_alpha": 999}, "lora_alpha=999"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"peft_type": "NONSENSE"}, "NONSENSE"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_alpha": "much"}, "adapter_config.json"),
        ([], "adapter_config.json is not a JSON object"),
    ],
)
def test_what_peft_would_read_must_be_what_we_read(
    engine: Engine, world: World, tmp_path: Path, change: Any, told: str
) -> None:
    block = {"type": "lora", "rank": 2, "target_modules": ["q_proj"]}
    put_adapter(world.store, tmp_path / "both", backbone=world.backbone, block=block, seed=1)
    path = tmp_path / "both" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change if change else change))
    with capture_logs() as logs:
        found = look(engine, world, tmp_path / "both")
    assert len(found.problems) == 1
    assert told in found.problems[0]
    assert [(log.get("reason"), log.get("exc_info")) for log in logs] == [(found.problems[0], None)]


@pytest.fixture
def lora(world: World, tmp_path: Path) -> Path:
    """A folder that PEFT would have written, to spoil."""
    block = {"type": "lora", "rank": 2, "target_modules": ["q_proj"]}
    put_adapter(world.store, tmp_path / "lora", backbone=world.backbone, block=block, seed=1)
    (tmp_path / "lora" / "graftwork.json").unlink()
    return tmp_path / "lora"


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def test_missing_unexpected_and_misfitting_tensors_are_named(
    engine: Engine, world: World, lora: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["extra"] = torch.ones(2)
        tensors["x"] = tensors.pop(FIRST_B)
        other = FIRST_B.replace(".0.", ".1.")
        tensors[other] = torch.ones(7, 2)

    spoil(lora, change)
    found = look(engine, world, lora)
    assert (found.missing, found.unexpected) == ([FIRST_B], ["extra", "x"])
    assert found.mismatched == [f"{FIRST_B.replace('.0.', '.1.')}: (7, 2), not (32, 2)"]
    assert len(found.matched) == 4
    assert len(found.problems) == 1


def test_a_p_tuning_that_does_not_fit_is_compared_too(
    engine: Engine, world: World, tmp_path: Path
) -> None:
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=5
    )
    folder = by_peft(world.settings.base_folder, tmp_path / "encoded", config)
    spoil(folder, lambda tensors: tensors.update(extra=torch.ones(2)))
    found = look(engine, world, folder)
    assert (found.matched, found.unexpected) == (["prompt_embeddings"], ["extra"])
    assert found.method["type"] == "soft_prompt"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_numbers_that_would_reach_other_rows(
    engine: Engine, world: World, lora: Path, value: float
) -> None:
    spoil(lora, lambda tensors: tensors[FIRST_B].fill_(value))
    found = look(engine, world, lora)
    assert "finite" in found.problems[0]
    assert len(found.matched) == 6


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "VBLORA"}, "VBLORA"),
        ({"peft_type": "\ud800"}, "cannot be read"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias"),
        ({"r": "four"}, "adapter_config.json"),
        ({"r": 8}, "dimensions"),
    ],
)
def test_configurations_that_mean_something_else(
    engine: Engine, world: World, lora: Path, changes: dict[str, Any], said: str
) -> None:
    edit(lora / "adapter_config.json", **changes)
    (problem,) = look(engine, world, lora).problems
    assert said in problem


@pytest.mark.parametrize("prompt", ["chat", {"format": "poem"}, {"format": "chat", "system": 3}])
def test_a_form_of_prompt_that_is_none(
    engine: Engine, world: World, lora: Path, prompt: Any
) -> None:
    method = {"type": "lora", "rank": 2, "target_modules": ["q_proj"]}
    ours = {"format": 1, "method": method, "prompt": prompt}
    (lora / "graftwork.json").write_text(json.dumps(ours))
    assert "prompt" in look(engine, world, lora).problems[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", {"peft_type": None}),
        ("graftwork.json", {"format": 1, "method": None}),
        ("graftwork.json", {"format": 1, "method": "lora"}),
        ("graftwork.json", {"format": 1, "method": {"type": "head", "labels": ["a", "\ud800"]}}),
        ("adapter_config.json", {"peft_type": "LORA", "r": 2, "target_modules": ["\ud800"]}),
    ],
)
def test_words_that_no_adapter_has(
    engine: Engine, world: World, lora: Path, name: str, content: object
) -> None:
    (lora / name).write_text(json.dumps(content))
    found = look(engine, world, lora)
    assert len(found.problems) == 1
    assert msgspec.json.encode(found)


def test_deep_nests(engine: Engine, world: World, lora: Path) -> None:
    (lora / "graftwork.json").write_text("[" * 50_000)
    (problem,) = look(engine, world, lora).problems
    assert "cannot be read" in problem


@pytest.mark.parametrize("rows", [255, 256])
def test_more_rows_than_leave_room_for_a_prompt(
    engine: Engine, world: World, tmp_path: Path, rows: int
) -> None:
    block = {"type": "soft_prompt", "prompt_length": rows, "init": "random"}
    ref = put_adapter(world.store, tmp_path / "long", backbone=world.backbone, block=block, seed=1)
    (problem,) = asyncio.run(engine.inspect(ref.digest)).problems
    assert f"the adapter takes {rows}" in problem


def test_another_base_by_digest_and_by_size(engine: Engine, world: World, tmp_path: Path) -> None:
    block = {"type": "lora", "rank": 2}
    folder = tmp_path / "other"
    provenance = {"base_digest": "f" * 64}
    put_adapter(
        world.store, folder, backbone=world.backbone, block=block, seed=1, provenance=provenance
    )
    (problem,) = look(engine, world, folder).problems
    assert "another base model" in problem

    wide = make_tiny_base(tmp_path / "wide", hidden_size=64)
    found = look(engine, world, by_peft(wide, tmp_path / "wider", THEIRS["lora"]))
    assert found.problems
    assert found.mismatched


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 64, b"\x08" + bytes(7) + b"{}"])
def test_files_that_are_not_what_their_names_say(
    engine: Engine, world: World, lora: Path, content: bytes
) -> None:
    (lora / "adapter_model.safetensors").write_bytes(content)
    assert look(engine, world, lora).problems
    shutil.copy(lora / "adapter_config.json", lora / "graftwork.json")
    assert look(engine, world, lora).problems


def test_others_are_answered_while_it_is_read(
    engine: Engine, world: World, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, read = threading.Event(), threading.Event(), inspecting.read_files

    def held_up(folder: Path) -> dict[str, bytearray]:
        begun.set()
        assert go.wait(20)
        return read(folder)

    monkeypatch.setattr(inspecting, "read_files", held_up)

    async def play() -> InspectReply:
        task = asyncio.create_task(engine.inspect(world.store.put_tree(lora)))
        await asyncio.to_thread(begun.wait, 20)
        await ask(engine, order("abc"))
        go.set()
        return await task

    assert asyncio.run(play()).problems == []


def to_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(reversed(tensors.values()))[..., -1] = torch.nan


def halved(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.half() for name, tensor in tensors.items()})


def counted(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.int() for name, tensor in tensors.items()})


@pytest.mark.parametrize("change", [to_nan, halved, counted, dict.popitem, dict.clear, None])
def test_training_tensors_are_refused_as_a_job_would_refuse_them(
    engine: Engine, world: World, tmp_path: Path, change: Callable[..., object] | None
) -> None:
    folder, block = tmp_path / "pissa", {"type": "pissa", "rank": 2}
    put_adapter(world.store, folder, backbone=world.backbone, block=block, seed=1)
    path = folder / "training.safetensors"
    if change is None:
        path.write_bytes(b"")
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    expected = []
    try:
        load_training_tensors(folder, shape=world.backbone.shape)
    except Corrupt as error:
        expected = [error.message]
    assert bool(expected) == (change is not halved)
    assert look(engine, world, folder).problems == expected


def test_no_path_of_the_engine_is_told(engine: Engine, world: World, lora: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    (problem,) = look(engine, world, lora).problems
    assert "/" not in problem


def test_one_that_is_too_large_is_not_even_read(
    start_engine: Callable[..., Engine], world: World, lora: Path
) -> None:
    engine = start_engine(adapter_bytes=100)
    (problem,) = look(engine, world, lora).problems
    assert "has 100 for adapters" in problem


def test_bytes_that_are_not_stored_are_not_found(engine: Engine) -> None:
    with pytest.raises(NotFound):
        asyncio.run(engine.inspect("0" * 64))


def test_nothing_of_it_stays(engine: Engine, world: World, lora: Path) -> None:
    look(engine, world, lora)
    assert engine.health()["resident"] == []
