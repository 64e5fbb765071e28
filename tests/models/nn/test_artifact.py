import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import Corrupt, InvalidRequest
from models.nn.artifact import load_artifact, save_artifact
from models.nn.methods.lora import Lora
from tests.models.nn.families import make_backbone, random_tensors

METHOD = Lora(rank=2, target_modules=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("llama")


@pytest.fixture
def folder(backbone, tmp_path):
    save_artifact(
        tmp_path,
        method=METHOD,
        tensors=random_tensors(METHOD, backbone),
        base=backbone.base,
        provenance={"base": "tiny", "base_digest": "b", "metrics": {"loss": 0.5}, "parent": None},
    )
    return tmp_path


def _change(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_the_folder_says_what_it_is_and_where_it_comes_from(folder):
    assert {path.name for path in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "graftwork.json",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == ["down_proj", "q_proj"]
    ours = json.loads((folder / "graftwork.json").read_text())
    assert ours["method"] == METHOD.model_dump(mode="json")
    assert ours["metrics"] == {"loss": 0.5}


def _not_finite(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")


def _renamed(tensors):
    name = next(iter(tensors))
    tensors[name + ".x"] = tensors.pop(name)


def _transposed(tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name].T.contiguous()


def _integers(tensors):
    name = next(iter(tensors))
    tensors[name] = tensors[name].int()


@pytest.mark.parametrize("change", [_not_finite, _renamed, _transposed, _integers, dict.popitem])
def test_tensors_are_exactly_those_of_the_method(folder, backbone, change):
    _change(folder, change)
    with pytest.raises(Corrupt):
        load_artifact(folder, shape=backbone.shape)


def test_half_a_file_is_corrupt(folder, backbone):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(Corrupt, match="not a whole safetensors file"):
        load_artifact(folder, shape=backbone.shape)


def test_pickles_are_never_read(folder, backbone):
    path = folder / "adapter_model.safetensors"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    path.rename(folder / "elsewhere")
    with pytest.raises(Corrupt, match="pickle"):
        load_artifact(folder, shape=backbone.shape)
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(Corrupt):
        load_artifact(folder, shape=backbone.shape)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 99}'])
def test_a_description_that_cannot_be_read_is_corrupt(folder, backbone, text):
    (folder / "graftwork.json").write_text(text)
    with pytest.raises(Corrupt):
        load_artifact(folder, shape=backbone.shape)


def test_an_adapter_of_another_base_does_not_load(folder):
    with pytest.raises((Corrupt, InvalidRequest)):
        load_artifact(folder, shape=make_backbone("phi3").shape)


def test_what_cannot_be_loaded_is_not_saved(backbone, tmp_path):
    tensors = random_tensors(METHOD, backbone)
    next(iter(tensors.values()))[0, 0] = torch.inf
    with pytest.raises(Corrupt, match="finite"):
        save_artifact(tmp_path, method=METHOD, tensors=tensors, base=backbone.base, provenance={})
    assert not list(tmp_path.iterdir())
