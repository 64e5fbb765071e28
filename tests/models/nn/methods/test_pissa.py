"""PiSSA against PEFT, which reads it as LoRA and trains over its own residual the same way."""

import peft
import pytest
import torch

from models.nn.artifact import (
    check_peft_config,
    load_artifact,
    load_training_tensors,
    read_files,
    save_artifact,
)
from models.nn.backbone import Backbone
from models.nn.low_rank import MOST_ALPHA, MOST_RANK
from models.nn.methods.lora import Lora
from models.nn.methods.pissa import Pissa
from models.nn.terms import Terms
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run_alone,
)
from tests.models.nn.methods.learning import falls, train, train_ours

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
BASES = ["llama-biased-tied", "qwen2", "qwen3", "phi3"]
METHODS = [
    Pissa(rank=4, alpha=8),
    Pissa(rank=3, alpha=5, use_rslora=True, target_modules=("o_proj", "layers.1.mlp.down_proj")),
]


def _save(folder, method, backbone, tensors):
    save_artifact(
        folder, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", METHODS, ids=["pissa", "rslora"])
@torch.no_grad()
def test_peft_and_our_lora_read_it_with_equal_logits(variant, method, tmp_path):
    backbone, ids = make_backbone(variant), random_ids(15)
    tensors = random_tensors(method, backbone)
    _save(tmp_path, method, backbone, tensors)
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    torch.testing.assert_close(ours, theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)
    (tmp_path / "graftwork.json").unlink()
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    assert (loaded.method.kind, loaded.method.rank) == ("lora", 2 * method.rank)
    again = run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors)
    torch.testing.assert_close(ours, again, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_largest_is_read_as_lora_too(use_rslora, tmp_path):
    backbone = make_backbone("llama")
    method = Pissa(
        rank=MOST_RANK, alpha=MOST_ALPHA, use_rslora=use_rslora, target_modules=("v_proj",)
    )
    _save(tmp_path, method, backbone, random_tensors(method, backbone))
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    check_peft_config(read_files(tmp_path), loaded, shape=backbone.shape)
    (tmp_path / "graftwork.json").unlink()
    again = load_artifact(tmp_path, shape=backbone.shape).method
    assert (again.rank, again.scale) == (2 * method.rank, method.scale)


@torch.no_grad()
def test_it_is_the_paper_s_formula_over_the_residual():
    method, backbone, ids = METHODS[0], make_backbone("qwen2"), random_ids(15)
    tensors, network = random_tensors(method, backbone), make_network("qwen2")
    for place in method.places(backbone.shape):
        down, up, down0, up0 = (
            tensors[f"{place}.{name}"] for name in ("lora_A", "lora_B", "initial_A", "initial_B")
        )
        weight = network.get_submodule(f"model.{place}").weight
        weight.sub_(method.scale * up0 @ down0)
        weight.add_(method.scale * up @ down)
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    torch.testing.assert_close(ours, network(ids[None]).logits[0], atol=2e-5, rtol=1e-5)


def test_it_starts_at_the_principal_directions():
    backbone = make_backbone("llama")
    method = Pissa(rank=24, alpha=12)  # wide enough for the random search to be exact
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    for place in method.places(backbone.shape):
        weight = backbone.base.weight(place).double()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        kept = min(24, len(values))
        principal = (left[:, :kept] * values[:kept]) @ right[:kept]
        up, down = (tensors[f"{place}.lora_{side}"] for side in "BA")
        torch.testing.assert_close(
            (method.scale * up @ down).double(), principal, atol=1e-5, rtol=0
        )
        # A and B share the singular values evenly.
        roots = (values[:kept] / method.scale).sqrt()
        torch.testing.assert_close(up.norm(dim=0)[:kept].double(), roots, atol=1e-5, rtol=0)
        torch.testing.assert_close(down.norm(dim=1)[:kept].double(), roots, atol=1e-5, rtol=0)


def test_a_narrow_search_is_close_on_a_weight_whose_spectrum_falls():
    backbone = make_backbone("llama")
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(32, 48, generator=generator))
    values = 0.7 ** torch.arange(32.0)
    with torch.no_grad():
        weight = backbone.network.model.layers[0].mlp.down_proj.weight
        weight.copy_((left * values) @ right[:32])
    place = "layers.0.mlp.down_proj"
    method = Pissa(rank=4, alpha=4, target_modules=(place,))
    tensors = method.init(backbone.base, generator)
    rest = weight - tensors[f"{place}.lora_B"] @ tensors[f"{place}.lora_A"]
    assert rest.norm().item() == pytest.approx(values[4:].norm().item(), rel=1e-4)


def test_twenty_steps_lose_as_peft_over_its_changed_base_loses():
    targets = ("q_proj", "o_proj", "down_proj")
    config = peft.LoraConfig(
        r=24, lora_alpha=24, init_lora_weights="pissa", target_modules=list(targets)
    )
    theirs = peft.get_peft_model(make_network("qwen2"), config)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    method, backbone = (
        Pissa(rank=24, alpha=24, target_modules=targets),
        Backbone(make_network("qwen2")),
    )
    assert sum(parameter.numel() for parameter in trained) == method.parameters(backbone.shape)
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    theirs_curve = train(lambda ids: theirs(ids[None], labels=ids[None]).loss, optimizer, steps=20)
    ours_curve = train_ours(method, backbone, rate=1e-3, steps=20)
    assert ours_curve == pytest.approx(theirs_curve, rel=1e-3)
    assert falls(ours_curve)


@torch.no_grad()
def test_a_bfloat16_term_keeps_small_steps():
    method, backbone = METHODS[0], make_backbone("qwen2")
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    first = dict(tensors)
    generator = torch.Generator().manual_seed(1)
    for name in tensors:
        if method.is_trained(name):
            step = torch.randn(tensors[name].shape, generator=generator)
            tensors[name] = tensors[name] + 1e-4 * step
    terms = Terms.of(method, tensors, backbone.base, dtype=torch.bfloat16)
    for place, term in terms.linears.items():
        after, before = (
            each[f"{place}.lora_B"].double() @ each[f"{place}.lora_A"].double()
            for each in (tensors, first)
        )
        update = term.up.double() @ term.down.double()
        assert (update - (after - before)).norm() < 0.01 * (after - before).norm()


def test_training_goes_on_from_what_is_kept_beside_the_artifact(tmp_path):
    method, backbone = METHODS[0], make_backbone("llama")
    tensors = random_tensors(method, backbone)
    _save(tmp_path, method, backbone, tensors)
    again = load_training_tensors(tmp_path, shape=backbone.shape)
    assert again.method == method
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in tensors.items())


def test_half_of_what_it_keeps_is_trained_and_that_is_as_much_as_lora():
    shape = make_backbone("qwen2").shape
    assert Pissa(rank=4).parameters(shape) == Lora(rank=4).parameters(shape)
