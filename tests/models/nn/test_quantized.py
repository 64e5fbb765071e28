"""Quantised bases: against their own unpacked weights, and against PEFT over the library's layers.

Biased, tied, fused and normalised projections are tried; sizes need not fill a block.
"""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from core.errors import InvalidRequest
from models.nn import quantized
from models.nn.artifact import save_artifact
from models.nn.backbone import Backbone
from models.nn.executors import Segment, Segments
from models.nn.loss import next_token_loss
from models.nn.methods import METHODS
from models.nn.methods.lora import Lora
from models.nn.quantized import is_packed
from models.nn.shape import HEAD, path_of
from models.nn.terms import Terms
from tests.models.nn.families import make_backbone, make_network, random_ids, random_tensors, run
from tests.tiny import make_tiny_base

pytest.importorskip("bitsandbytes", reason="no wheel of bitsandbytes for this platform")

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
VARIANTS = ["llama-biased-tied", "qwen3", "phi3", "gemma2"]
KINDS = ["nf4", "int8"]
DTYPES = [torch.float32, torch.bfloat16]
IDS = random_ids(24)


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make_network(request.param).save_pretrained(path)
    return path


@pytest.fixture(params=KINDS)
def backbone(request, folder):
    return Backbone.load(folder, dtype=torch.float32, quantization=request.param)


def executor_of(method, tensors, backbone):
    return Segments([Segment(0, len(IDS), Terms.of(method, tensors, backbone.base))])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_network_of_its_unpacked_weights_to_the_bit(folder, kind, dtype):
    ours = Backbone.load(folder, dtype=dtype, quantization=kind)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    whole = run(Backbone.load(folder, dtype=dtype), IDS)
    for place in ours.shape.linears:
        if place != HEAD:
            network.get_submodule(path_of(place)).weight.copy_(ours.base.weight(place))
    expected = run(Backbone(network).without_flat(), IDS)  # as a packed one computes
    assert ours.dtype == expected.dtype == dtype
    assert torch.equal(run(ours, IDS), expected)
    assert not torch.equal(expected, whole)


def test_the_shape_is_that_of_the_whole_base_without_the_packed_parameters(folder, backbone):
    whole = Backbone.load(folder, dtype=torch.float32).shape
    assert backbone.shape.model_copy(update={"parameters": whole.parameters}) == whole
    assert set(whole.parameters) - set(backbone.shape.parameters) == {
        f"{path_of(place)}.weight" for place in whole.linears if place != HEAD
    }


def test_weights_round_to_their_width(folder, backbone):
    whole = Backbone.load(folder, dtype=torch.float32)
    four_bits = any(weight.dtype == torch.uint8 for weight in backbone.network.parameters())
    for place, size in whole.shape.linears.items():
        exact, rounded = whole.base.weight(place), backbone.base.weight(place)
        assert rounded.shape == size
        if place == HEAD:
            assert torch.equal(rounded, exact)
            continue
        assert is_packed(backbone.network.get_submodule(path_of(place)).weight)
        error = (rounded - exact).abs().max() / exact.abs().max()
        assert 0 < error < (0.16 if four_bits else 0.005)  # half of NF4's widest gap is 0.152


@pytest.mark.parametrize("kind", [kind for kind, cls in METHODS.items() if "linear" in cls.sites])
def test_step_0_is_the_quantised_base(backbone, kind):
    method = METHODS[kind]()
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    assert method.starts_as_base
    with torch.no_grad():
        terms = Terms.of(method, tensors, backbone.base)
        acting = run(backbone, IDS, executor=Segments([Segment(0, len(IDS), terms)]))
        assert torch.equal(acting, run(backbone, IDS))


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "ia3"])
def test_gradients_are_those_over_the_unpacked_weights_and_the_adapters_alone(
    folder, backbone, kind
):
    method = METHODS[kind]()
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for place in backbone.shape.linears:
            network.get_submodule(path_of(place)).weight.copy_(backbone.base.weight(place))
    whole = Backbone(network).without_flat()  # as a packed one computes
    gradients = []
    for each in (backbone, whole):
        own = {
            name: tensor.requires_grad_(method.is_trained(name))
            for name, tensor in random_tensors(method, whole).items()
        }
        logits = run(each, IDS, executor=executor_of(method, own, each))
        next_token_loss(logits[:-1], IDS[1:]).backward()
        gradients.append({name: own[name].grad for name in own if method.is_trained(name)})
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


def test_peft_over_the_librarys_layers_has_equal_loss_and_gradients(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # whole blocks: see `_by_blocks`
    make_tiny_base(tmp_path / "base", attention_bias=True, mlp_bias=True, **sizes)
    backbone = Backbone.load(tmp_path / "base", dtype=torch.float32, quantization="nf4")
    method = Lora(rank=4, alpha=8)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path / "adapter", method=method, tensors=tensors, base=backbone.base, provenance={}
    )
    own = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    ours = run(backbone, IDS, executor=executor_of(method, own, backbone))
    loss = next_token_loss(ours[:-1], IDS[1:]) / (len(IDS) - 1)
    loss.backward()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    network = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, quantization_config=config
    )
    theirs = peft.PeftModel.from_pretrained(network, tmp_path / "adapter", is_trainable=True)
    expected = theirs.train()(IDS[None], labels=IDS[None]).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    parameters = dict(theirs.named_parameters())
    for name, tensor in own.items():
        place, _, half = name.rpartition(".")
        peer = parameters[f"base_model.model.{path_of(place)}.{half}.default.weight"]
        torch.testing.assert_close(tensor.grad, peer.grad, atol=1e-5, rtol=1e-4)


def test_the_backward_keeps_the_packed_weight_only(backbone):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        leaf = backbone.network.model.layers[0].mlp.down_proj
        x = torch.randn(3, backbone.shape.linears[leaf.place][1]).requires_grad_()
        quantized.linear(x, leaf.weight, leaf.bias).sum().backward()
    assert x.grad is not None
    assert not any(tensor.is_floating_point() for tensor in kept)


def test_a_worker_without_the_library_says_what_to_install(monkeypatch, folder):
    monkeypatch.setattr(quantized, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InvalidRequest, match="this worker lacks; install it there") as caught:
        Backbone.load(folder, dtype=torch.float32, quantization="nf4")
    assert (caught.value.code, caught.value.param) == (
        "quantization_unavailable",
        "training.quantization",
    )


def test_a_base_that_is_not_quantised_gives_its_weights_as_before():
    backbone = make_backbone("llama")
    leaf = backbone.network.model.layers[0].mlp.down_proj
    assert not is_packed(leaf.weight)
    assert torch.equal(backbone.base.weight(leaf.place), leaf.weight.detach())
