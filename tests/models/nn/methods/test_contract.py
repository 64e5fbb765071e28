"""What every method promises, asked of each by its presence; no method is named here."""

import subprocess
import sys
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from core.errors import InvalidRequest
from models.nn.artifact import (
    check_peft_config,
    load_artifact,
    load_training_tensors,
    read_files,
    save_artifact,
)
from models.nn.executors import Bank, Packed, Segment, Segments
from models.nn.forward import Part, forward
from models.nn.head import class_logits, pool
from models.nn.loss import next_token_loss
from models.nn.methods import METHODS, AnyMethod, parse_method
from models.nn.methods.base import SITES, Method
from models.nn.terms import Terms
from tests.models.nn.families import (
    compile_prefix,
    make_backbone,
    random_ids,
    random_tensors,
    run,
    run_alone,
    run_terms,
)

CASES = [
    pytest.param(cls(**example), id=f"{kind}-{index}")
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
]
BASES = ["llama-biased-tied", "qwen2", "qwen3", "phi3", "gemma3"]
WINDOWED = ["mistral-window", "gemma2"]


def of_kind(choose):
    """Return the cases whose method `choose` picks."""
    return [case for case in CASES if choose(case.values[0])]


def is_trained(method):
    return method.parameters(make_backbone("llama").shape) > 0


def fits(method, backbone):
    """Say whether a base has the places that a configuration names; fused ones need not."""
    try:
        method.tensors(backbone.shape)
    except InvalidRequest:
        if not backbone.shape.parts:
            raise
        return False
    return True


@pytest.fixture(autouse=True)
def _names_exist(request):
    chosen = getattr(request.node, "callspec", None)
    chosen = chosen.params if chosen else {}
    variant = chosen.get("variant", chosen.get("backbone"))
    if variant and "method" in chosen and not fits(chosen["method"], make_backbone(variant)):
        pytest.skip("this base has joined the layers that the configuration names")


TRAINED = of_kind(is_trained)
BY_GRADIENT = of_kind(lambda method: is_trained(method) and method.search_steps == 0)
SHARING = of_kind(lambda method: method.shares_batch)


def real_loss(backbone, ids, terms, *, lengths=()):
    """Return what training minimises: the sum over next tokens, or over labels."""
    lengths = lengths or (len(ids),)
    states = forward(backbone, [Part(ids, lengths, terms)])
    if terms.head is not None:
        pooled = pool(states.hidden_td, lengths, pooling=terms.head.pooling)
        scores = class_logits(pooled, head=terms.head)
        return F.cross_entropy(scores, torch.ones(len(lengths), dtype=torch.int64), reduction="sum")
    ends = set(accumulate(lengths))
    rows = torch.tensor([row for row in range(len(ids)) if row + 1 not in ends])
    return next_token_loss(states.logits(states.hidden_td[rows], rows), ids[rows + 1])


def answer(backbone, ids, terms):
    """Return what users see of one sequence: logits of its rows, or scores of classes."""
    states = forward(backbone, [Part(ids, (len(ids),), terms)])
    if terms.head is not None:
        return class_logits(
            pool(states.hidden_td, [len(ids)], pooling=terms.head.pooling), head=terms.head
        )
    return states.logits(states.hidden_td, torch.arange(len(ids)))


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
blocks = [f"layers.{layer}" for layer in range(3)]
linears = [f"{block}.self_attn.{name}_proj" for block in blocks for name in "qkvo"]
linears += [f"{block}.mlp.{name}_proj" for block in blocks for name in ("gate", "up", "down")]
norms = [f"{block}.{name}_layernorm" for block in blocks for name in ("input", "post_attention")]
shape = Shape(hidden=4, layers=3, heads=1, kv_heads=1, head_dim=4, vocab=9, context=99, tied=True,
    norms={name: 4 for name in [*norms, "norm"]},
    linears={name: (4, 4) for name in linears} | {"lm_head": (9, 4)},
    parameters={"model.norm.weight": (4,), "lm_head.weight": (9, 4)})
for kind, cls in METHODS.items():
    cls.model_json_schema()
    for example in cls.examples:
        method = parse_method({"type": kind, **example})
        assert method.parameters(shape) >= 0 and method.served(shape) is not None
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
    trained = (t.numel() for name, t in tensors.items() if method.is_trained(name))
    assert method.parameters(backbone.shape) == sum(trained)
    again = method.init(backbone.base, torch.Generator().manual_seed(0))
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
    of_base = {weight.untyped_storage().data_ptr() for weight in backbone.network.parameters()}
    assert not of_base & {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("method", of_kind(lambda method: method.starts_as_base))
def test_training_starts_at_the_base_to_the_bit(method, variant, dtype):
    backbone = make_backbone(variant, dtype=dtype)
    tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    ids = random_ids(12)
    logits = run_alone(backbone, ids, method=method, tensors=tensors)
    # Whole weights are not joined for one forward, so they go the network's own way.
    base = backbone.without_flat() if "weights" in method.sites else backbone
    assert torch.equal(logits, run(base, ids))


@pytest.mark.parametrize("method", TRAINED)
def test_every_own_tensor_gets_a_gradient_and_no_weight_of_the_base(method, backbone):
    tensors = {
        name: tensor.requires_grad_(method.is_trained(name))
        for name, tensor in random_tensors(method, backbone).items()
    }
    real_loss(backbone, random_ids(12), Terms.of(method, tensors, backbone.base)).backward()
    for name, tensor in tensors.items():
        if method.is_trained(name):
            assert tensor.grad is not None, name
            assert tensor.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in backbone.network.parameters())


@pytest.mark.parametrize("method", BY_GRADIENT)
def test_every_own_tensor_moves_within_two_steps_from_where_it_starts(method, backbone):
    first = method.init(backbone.base, torch.Generator().manual_seed(0))
    tensors = {name: t.clone().requires_grad_(method.is_trained(name)) for name, t in first.items()}
    trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        terms = Terms.of(method, tensors, backbone.base)
        real_loss(backbone, random_ids(24), terms, lengths=(11, 13)).backward()
        optimizer.step()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, first[name]) != method.is_trained(name), name


@pytest.mark.parametrize("method", TRAINED)
def test_perturbed_tensors_change_the_answer(method, backbone):
    ids = random_ids(12)
    tensors = random_tensors(method, backbone)
    terms = Terms.of(method, tensors, backbone.base)
    if terms.head is None:
        assert (answer(backbone, ids, terms) - run(backbone, ids)).abs().max() > 1e-3
    else:
        assert answer(backbone, ids, terms).std() > 1e-3


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
    assert loaded.provenance["seed"] == 3
    served = method.finish(tensors, backbone.base)
    assert loaded.tensors.keys() == served.keys()
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in served.items())
    again = load_training_tensors(tmp_path / "one", shape=backbone.shape).tensors
    assert again.keys() == tensors.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("method", CASES)
def test_what_is_served_answers_as_what_was_trained(method, backbone):
    tensors, ids = random_tensors(method, backbone), random_ids(12)
    served = method.finish(tensors, backbone.base)
    assert {name: tuple(t.shape) for name, t in served.items()} == method.served(backbone.shape)
    trained, finished = (
        answer(backbone, ids, Terms.of(method, form, backbone.base)) for form in (tensors, served)
    )
    torch.testing.assert_close(finished, trained, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("method", of_kind(lambda method: method.peft_type))
def test_without_our_file_an_artifact_is_read_as_peft_wrote_it(method, backbone, tmp_path):
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    if not (tmp_path / "adapter_config.json").exists():
        return  # this configuration has no form in PEFT
    (tmp_path / "graftwork.json").unlink()
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    ids = random_ids(12)
    served = method.finish(tensors, backbone.base)
    ours = run_alone(backbone, ids, method=method, tensors=served)
    theirs = run_alone(backbone, ids, method=loaded.method, tensors=loaded.tensors)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "method", of_kind(lambda method: type(method).to_peft is not Method.to_peft)
)
def test_both_descriptions_that_an_artifact_has_are_of_one_adapter(method, backbone, tmp_path):
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    check_peft_config(read_files(tmp_path), loaded, shape=backbone.shape)


@torch.no_grad()
@pytest.mark.parametrize("variant", [*BASES, *WINDOWED])
@pytest.mark.parametrize("method", SHARING)
def test_a_prefix_as_rows_equals_its_keys_and_values(method, variant):
    backbone = make_backbone(variant)
    tensors, ids = random_tensors(method, backbone), random_ids(17)
    terms = Terms.of(method, tensors, backbone.base)
    lengths = (9, 8)
    executor = Segments([Segment(0, 17, terms)])
    prefix = compile_prefix(backbone, terms)
    compiled = run(backbone, ids, executor=executor, lengths=lengths, prefixes=[prefix, prefix])
    shared = run_terms(backbone, ids, terms=terms, lengths=lengths)
    torch.testing.assert_close(compiled, shared, atol=2e-5, rtol=1e-5)
    alone = [run_terms(backbone, part, terms=terms) for part in ids.split(lengths)]
    torch.testing.assert_close(shared, torch.cat(alone), atol=2e-5, rtol=1e-5)
    assert (prefix.rows if prefix else 0) == terms.prefix_rows == method.rows_before


@torch.no_grad()
def test_a_mixed_batch_of_everything_equals_each_alone(backbone):
    methods = [case.values[0] for case in SHARING if fits(case.values[0], backbone)]
    tensors = [random_tensors(method, backbone, seed=i) for i, method in enumerate(methods)]
    terms = [
        Terms.of(method, own, backbone.base) for method, own in zip(methods, tensors, strict=True)
    ]
    prefixes = [None, *(compile_prefix(backbone, term) for term in terms)]
    lengths = tuple(3 + index % 4 for index in range(len(methods) + 1))
    ids = random_ids(sum(lengths))
    slots = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    parts = ids.split(lengths)
    alone = [run(backbone, parts[0])]
    alone += [
        run_terms(backbone, part, terms=own) for part, own in zip(parts[1:], terms, strict=True)
    ]
    starts = [0, *accumulate(lengths)]
    segments = [
        Segment(starts[index], starts[index + 1], own) for index, own in enumerate([None, *terms])
    ]
    for executor in (Packed(Bank.of(terms), slots), Segments(segments)):
        together = run(backbone, ids, executor=executor, lengths=lengths, prefixes=prefixes)
        # Of so many random rows there are some of which float32 alone is 4e-5 from float64.
        torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=1e-5)


# A head acts behind the stream, on pooled rows of its own, so classifiers have no case here.
@pytest.mark.parametrize(
    "method", of_kind(lambda m: m.shares_batch and is_trained(m) and m.class_labels is None)
)
def test_jobs_in_one_stream_get_the_gradients_they_get_alone(method, backbone):
    ids = random_ids(20)
    parts = ids.split((9, 11))
    own = [
        {
            name: t.requires_grad_(method.is_trained(name))
            for name, t in random_tensors(method, backbone, seed=seed).items()
        }
        for seed in (1, 2)
    ]
    trained = [[t for t in tensors.values() if t.requires_grad] for tensors in own]
    terms = [Terms.of(method, tensors, backbone.base) for tensors in own]
    states = forward(
        backbone, [Part(p, (len(p),), term) for p, term in zip(parts, terms, strict=True)]
    )
    logits = states.logits(states.hidden_td, torch.arange(20))
    loss = next_token_loss(logits[:8], ids[1:9]) + next_token_loss(logits[9:19], ids[10:])
    together = torch.autograd.grad(loss, trained[0] + trained[1])
    alone = []
    for part, tensors, leaves in zip(parts, own, trained, strict=True):
        lone = real_loss(backbone, part, Terms.of(method, tensors, backbone.base))
        alone += torch.autograd.grad(lone, leaves)
    largest = max(gradient.abs().max().item() for gradient in alone)
    torch.testing.assert_close(together, tuple(alone), atol=1e-5 * max(largest, 1.0), rtol=1e-4)
