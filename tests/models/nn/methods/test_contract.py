"""What every method promises, asked of each by its presence; no method is named here."""

import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter

from models.nn.artifact import load_artifact, save_artifact
from models.nn.executors import Bank, Packed, Segment, Segments
from models.nn.loss import next_token_loss
from models.nn.methods import METHODS, AnyMethod, parse_method
from models.nn.methods.base import Method
from models.nn.terms import Terms
from tests.models.nn.families import make_backbone, random_ids, random_tensors, run, run_alone

CASES = [
    pytest.param(cls(**example), id=f"{kind}-{index}")
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
]
BASES = ["llama-biased-tied", "qwen2", "qwen3", "phi3"]
SITES = {"linear"}


@pytest.fixture(scope="module", params=BASES)
def backbone(request):
    return make_backbone(request.param)


@pytest.fixture
def method(request):
    return request.param


@pytest.mark.parametrize("method", CASES)
def test_a_configuration_survives_json_and_says_its_type(method):
    block = method.model_dump(mode="json")
    assert block["type"] == method.kind
    assert parse_method(block) == method
    assert TypeAdapter(AnyMethod).validate_json(method.model_dump_json()) == method


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_every_field_is_described(cls):
    fields = cls.model_json_schema()["properties"]
    assert "type" in fields
    assert all(field.get("description") for name, field in fields.items() if name != "type")
    assert cls.model_json_schema()["description"]


def test_configurations_schemas_and_counts_need_no_torch():
    code = """
import sys
from models.nn.methods import METHODS, parse_method
from models.nn.shape import Shape
shape = Shape(hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, vocab=9, context=9, tied=True,
    norms={}, linears={f"layers.1.{name}": (4, 4) for name in
    ("self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")}
    | {"lm_head": (9, 4)})
for kind, cls in METHODS.items():
    cls.model_json_schema()
    for example in cls.examples:
        assert parse_method({"type": kind, **example}).parameters(shape) > 0
print("torch._C" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_sites_are_the_functions_overridden(cls):
    assert {site for site in SITES if getattr(cls, site) is not getattr(Method, site)} == cls.sites


@pytest.mark.parametrize("method", CASES)
def test_tensors_are_what_init_makes(method, backbone):
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == method.tensors(backbone.shape)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert method.parameters(backbone.shape) == sum(t.numel() for t in tensors.values())
    again = method.init(backbone.base, torch.Generator().manual_seed(0))
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", [case for case in CASES if case.values[0].starts_as_base])
def test_training_starts_at_the_base_to_the_bit(method, variant, dtype):
    backbone = make_backbone(variant, dtype=dtype)
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    ids = random_ids(12)
    logits = run_alone(backbone, ids, method=method, tensors=tensors)
    assert torch.equal(logits, run(backbone, ids))


@pytest.mark.parametrize("method", CASES)
def test_every_own_tensor_gets_a_gradient_and_no_weight_of_the_base(method, backbone):
    tensors = {
        name: tensor.requires_grad_() for name, tensor in random_tensors(method, backbone).items()
    }
    ids = random_ids(12)
    logits = run_alone(backbone, ids, method=method, tensors=tensors)
    next_token_loss(logits[:-1], ids[1:]).backward()
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


@pytest.mark.parametrize("method", CASES)
def test_perturbed_tensors_change_the_logits(method, backbone):
    ids = random_ids(12)
    tensors = random_tensors(method, backbone)
    changed = run_alone(backbone, ids, method=method, tensors=tensors)
    assert (changed - run(backbone, ids)).abs().max() > 1e-3


@pytest.mark.parametrize("method", CASES)
def test_an_artifact_gives_the_tensors_back_to_the_bit(method, backbone, tmp_path):
    tensors = random_tensors(method, backbone)
    provenance = {"base": "tiny", "seed": 3}
    for folder in (tmp_path / "one", tmp_path / "two"):
        save_artifact(
            folder, method=method, tensors=tensors, base=backbone.base, provenance=provenance
        )
    loaded = load_artifact(tmp_path / "one", shape=backbone.shape)
    assert loaded.method == method
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in tensors.items())
    assert loaded.provenance["seed"] == 3
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("method", [case for case in CASES if case.values[0].peft_type])
def test_without_our_file_an_artifact_is_read_as_peft_wrote_it(method, backbone, tmp_path):
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    (tmp_path / "graftwork.json").unlink()
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    ids = random_ids(12)
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    theirs = run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors)
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_mixed_batch_of_everything_equals_each_alone(backbone):
    methods = [case.values[0] for case in CASES if case.values[0].shares_batch]
    tensors = [random_tensors(method, backbone, seed=i) for i, method in enumerate(methods)]
    terms = [
        Terms.of(method, own, backbone.base) for method, own in zip(methods, tensors, strict=True)
    ]
    lengths = tuple(3 + index % 4 for index in range(len(methods) + 1))
    ids = random_ids(sum(lengths))
    slots = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    alone = [run(backbone, ids[: lengths[0]])]
    segments = []
    for part, method, own, term in zip(
        ids[lengths[0] :].split(lengths[1:]), methods, tensors, terms, strict=True
    ):
        alone.append(run_alone(backbone, part, method=method, tensors=own))
        start = segments[-1].stop if segments else lengths[0]
        segments.append(Segment(start, start + len(part), term))
    for executor in (Packed(Bank.of(terms), slots), Segments([Segment(0, 3, None), *segments])):
        together = run(backbone, ids, executor=executor, lengths=lengths)
        torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("method", CASES)
def test_jobs_in_one_stream_get_the_gradients_they_get_alone(method, backbone):
    ids = random_ids(20)
    lengths = (9, 11)
    own = [
        {name: t.requires_grad_() for name, t in random_tensors(method, backbone, seed=s).items()}
        for s in (1, 2)
    ]
    terms = [Terms.of(method, tensors, backbone.base) for tensors in own]
    executor = Segments([Segment(0, 9, terms[0]), Segment(9, 20, terms[1])])
    logits = run(backbone, ids, executor=executor, lengths=lengths)
    loss = next_token_loss(logits[:8], ids[1:9]) + next_token_loss(logits[9:19], ids[10:])
    together = torch.autograd.grad(loss, [t for tensors in own for t in tensors.values()])
    alone = []
    for part, tensors in zip(ids.split(lengths), own, strict=True):
        logits = run_alone(backbone, part, method=method, tensors=tensors)
        alone += torch.autograd.grad(next_token_loss(logits[:-1], part[1:]), tensors.values())
    largest = max(gradient.abs().max().item() for gradient in alone)
    torch.testing.assert_close(together, tuple(alone), atol=1e-5 * max(largest, 1.0), rtol=1e-4)
