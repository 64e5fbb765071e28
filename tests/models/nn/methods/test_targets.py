import pytest

from core.errors import InvalidRequest
from models.nn.methods.ia3 import IA3
from models.nn.methods.lora import Lora
from tests.models.nn.families import make_backbone


@pytest.fixture(scope="module")
def shape():
    return make_backbone("llama").shape


def test_all_linear_is_every_place_but_the_head(shape):
    assert set(Lora().places(shape)) == shape.linears.keys() - {"lm_head"}


@pytest.mark.parametrize(
    ("target", "count"),
    [("q_proj", 3), ("mlp.up_proj", 3), ("layers.1.mlp.up_proj", 1), ("lm_head", 1)],
)
def test_targets_are_last_names_or_whole_places(shape, target, count):
    assert len(Lora(target_modules=(target,)).places(shape)) == count


def test_a_whole_place_may_be_written_with_the_networks_prefix(shape):
    places = Lora(target_modules=("model.layers.1.mlp.up_proj",)).places(shape)
    assert places == ("layers.1.mlp.up_proj",)


@pytest.mark.parametrize("target", ["qproj", "proj", "layers.9.mlp.up_proj", "norm", ""])
@pytest.mark.parametrize("cls", [Lora, IA3])
def test_a_target_that_matches_nothing_is_named(shape, cls, target):
    method = cls(target_modules=("q_proj", "down_proj", target))
    with pytest.raises(InvalidRequest, match="names no such layer") as caught:
        method.tensors(shape)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "peft.target_modules")
    assert repr(target) in caught.value.message


def test_the_feed_forward_must_be_among_the_targets(shape):
    with pytest.raises(InvalidRequest) as caught:
        IA3(target_modules=("k_proj",)).tensors(shape)
    assert caught.value.param == "peft.feedforward_modules"


def test_fused_keys_and_values_are_rescaled_as_unfused_ones():
    shape = make_backbone("phi3").shape
    names = IA3().tensors(shape)
    assert names["layers.0.self_attn.k_proj.ia3_l"] == (16,)
    assert len(names) == 3 * 3
    with pytest.raises(InvalidRequest, match="q_proj"):
        Lora(target_modules=("q_proj",)).tensors(shape)
