"""The flat forward: the same function as the surgery, or not used at all."""

import pytest
import torch

from models.nn.executors import NOBODY, Bank, Packed
from models.nn.flat import FLAT_FAMILIES
from models.nn.forward import Part, forward
from models.nn.methods import METHODS
from models.nn.terms import Terms
from tests.models.nn.families import (
    VARIANTS,
    compile_prefix,
    make_backbone,
    random_ids,
    random_tensors,
    run,
)

FLAT = ["llama", "llama-biased-tied", "mistral", "qwen2"]
LENGTHS = (17, 1, 22)
CASES = [
    pytest.param(cls(**example), id=f"{kind}-{index}")
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
]


@pytest.fixture(scope="module", params=["llama-biased-tied", "qwen2"])
def backbone(request):
    return make_backbone(request.param)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_plain_llamas_are_admitted(variant):
    assert make_backbone(variant).is_flat == (variant in FLAT)


def test_a_window_in_an_admitted_family_is_seen():
    assert make_backbone("mistral-window").config.model_type in FLAT_FAMILIES
    assert make_backbone("qwen2-window").config.model_type in FLAT_FAMILIES


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "llama3"])
def test_rotary_embeddings_are_the_networks_own(scaling, monkeypatch):
    rope = {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }[scaling]
    settings = {"rope_parameters": {"rope_type": scaling, "rope_theta": 10000.0, **rope}}
    monkeypatch.setitem(VARIANTS, "scaled", ("LlamaConfig", settings))
    backbone, ids = make_backbone("scaled"), random_ids(100)
    assert backbone.is_flat
    torch.testing.assert_close(run(backbone, ids), run(backbone.without_flat(), ids))


@pytest.mark.parametrize("variant", FLAT)
def test_a_network_holds_joined_weights_once(variant):
    network = make_backbone(variant).network
    attention = network.model.layers[1].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    storages = {part.weight.untyped_storage().data_ptr() for part in parts}
    assert len(storages) == 1


@pytest.mark.parametrize("variant", FLAT)
def test_bfloat16_is_as_near_to_float32_as_the_surgery_is(variant):
    exact, rounded = make_backbone(variant), make_backbone(variant, dtype=torch.bfloat16)
    assert rounded.is_flat
    errors = [0.0, 0.0]
    for ids in random_ids(160).split(40):
        expected = run(exact.without_flat(), ids, lengths=LENGTHS)
        for index, one in enumerate((rounded, rounded.without_flat())):
            errors[index] += float((run(one, ids, lengths=LENGTHS).float() - expected).norm())
    assert errors[0] < 1.25 * errors[1]


@pytest.mark.parametrize("method", CASES)
def test_every_method_has_the_states_and_gradients_of_the_surgery(method, backbone):
    ids = random_ids(40)
    tensors = random_tensors(method, backbone)
    trained = [
        tensor.requires_grad_() for name, tensor in tensors.items() if method.is_trained(name)
    ]
    found = []
    for one in (backbone, backbone.without_flat()):
        terms = Terms.of(method, tensors, backbone.base)
        states = forward(one, [Part(ids, LENGTHS, terms)])
        weights = torch.linspace(-1, 1, states.hidden_td.numel()).view_as(states.hidden_td)
        loss = (states.hidden_td * weights).sum()
        grads = []
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        found.append((states.hidden_td, *grads))
    for flat, surgery in zip(*found, strict=True):
        # Roundings grow to 3e-4 on the way down through tensors as wild as these.
        assert (flat - surgery).norm() <= 1e-3 * surgery.norm()


@torch.no_grad()
def test_a_mixed_batch_has_the_answers_of_the_surgery(backbone):
    methods = [case.values[0] for case in CASES if case.values[0].shares_batch]
    terms = [
        Terms.of(method, random_tensors(method, backbone, seed=seed), backbone.base)
        for seed, method in enumerate(methods)
    ]
    prefixes = [None, *(compile_prefix(backbone, own) for own in terms)]
    lengths = tuple(3 + index % 4 for index in range(len(methods) + 1))
    slots = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    executor, ids = Packed(Bank.of(terms), slots), random_ids(sum(lengths))
    answers = [
        run(one, ids, executor=executor, lengths=lengths, prefixes=prefixes)
        for one in (backbone, backbone.without_flat())
    ]
    # Of 1,300 rows behind tensors as wild as these one was 3e-5 apart, most were 1e-6.
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-5)


def test_nothing_is_kept_where_nothing_trains(backbone):
    states = forward(backbone, [Part(random_ids(9), (9,))])
    assert not states.hidden_td.requires_grad
    assert states.executor is NOBODY


@pytest.mark.parametrize("method", CASES)
def test_states_that_are_read_are_those_of_all_rows(method, backbone):
    """Beside a part that is read whole, in both forwards; gradients come from what is read."""
    ids, read_n = random_ids(40), torch.tensor([3, 4, 16, 17, 20, 39])
    tensors = random_tensors(method, backbone)
    trained = [
        tensor.requires_grad_() for name, tensor in tensors.items() if method.is_trained(name)
    ]
    for one in (backbone, backbone.without_flat()):
        found = []
        for read in (None, read_n):
            terms = Terms.of(method, tensors, backbone.base)
            others = [] if terms.weights else [Part(random_ids(5), (5,))]
            states = forward(one, [*others, Part(ids, LENGTHS, terms, read_n=read)])
            whole = states.of(len(others)).hidden_td
            own_nd = whole[read_n] if read is None else whole
            assert len(whole) == (len(ids) if read is None else len(read_n))
            loss = (own_nd * torch.linspace(-1, 1, own_nd.numel()).view_as(own_nd)).sum()
            grads = []
            if loss.requires_grad:
                grads = torch.autograd.grad(
                    loss, trained, allow_unused=True, materialize_grads=True
                )
            found.append((own_nd, *grads))
        for all_rows, some in zip(*found, strict=True):
            assert (all_rows - some).norm() <= 1e-4 * all_rows.norm()
