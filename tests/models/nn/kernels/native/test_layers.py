"""Layers as one op: the bits of the ops one by one, and no more kept than by them."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource
from models.nn.forward import Part, States, forward
from models.nn.kernels.native import Library, attention, library, project, reason, stack
from models.nn.lineage import share_starts
from models.nn.lower_layers import LowerLayers
from models.nn.methods import parse_method
from models.nn.methods.base import Method
from models.nn.terms import Terms
from tests.models.nn.families import random_ids, random_tensors

LAYERS = 4
LENGTHS = (17, 1, 22)
LOW_RANK: tuple[dict[str, Any], ...] = (
    {"type": "lora", "rank": 4},
    {"type": "lora", "rank": 3, "target_modules": ["q_proj", "down_proj"]},
    {"type": "lora", "rank": 2, "target_modules": ["layers.1.self_attn.o_proj", "up_proj"]},
    {"type": "lora", "rank": 2, "target_modules": ["layers.2.mlp.down_proj"]},
    {"type": "pissa", "rank": 4},
    {"type": "soft_prompt"},
)
OTHERS: tuple[dict[str, Any], ...] = (
    {"type": "ia3"},
    {"type": "dora", "rank": 2},
    {"type": "bottleneck"},
    {"type": "prefix"},
    {"type": "ln_tuning"},
    {"type": "full"},
    {"type": "lora", "rank": 2, "dropout": 0.5},
    {"type": "lora", "rank": 2, "target_modules": ["layers.3.mlp.up_proj"]},
)


@pytest.fixture(autouse=True, params=["here", "emulated"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have products as this processor has them, and by tiles, whose instructions are emulated."""
    found = library()
    if request.param == "here" or found is None:
        return
    emulated = Library(found.handle, forms=["emulated"])
    for module in (attention, project, stack):
        monkeypatch.setattr(module, "find", lambda: emulated)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "biased"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Return a network that the kernels take, in what they train in."""
    found = library()
    if found is None or not found.trains:
        pytest.skip(reason())
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        attention_bias=request.param,
        mlp_bias=request.param,
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return Backbone(network.to(torch.bfloat16))


class Watched:
    """Counts the layers that were computed as one op, or has none be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, off: bool = False) -> None:
        self.layers = 0
        compute = LowerLayers.compute

        def watch(lower: LowerLayers, *args: Any, **given: Any) -> tuple[Tensor, Tensor] | None:
            made = None if off else compute(lower, *args, **given)
            self.layers += 0 if made is None else len(lower)
            return made

        monkeypatch.setattr(LowerLayers, "compute", watch)


def parts(
    methods: Sequence[Method],
    backbone: Backbone,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    some: bool = False,
    **given: Any,
) -> tuple[list[Part], list[Tensor]]:
    """Return a part for each method, and the tensors that train; only two of three, if `some`."""
    made, trained = [], []
    for seed, method in enumerate(methods):
        tensors = random_tensors(method, backbone, seed=seed)
        own = [tensor for name, tensor in tensors.items() if method.is_trained(name)]
        trained += [t.requires_grad_() for i, t in enumerate(own) if not some or i % 3]
        terms = Terms.of(method, tensors, backbone.base)
        made.append(Part(random_ids(sum(lengths), seed=seed), lengths, terms, **given))
    return made, trained


def gradients(states: States, trained: Sequence[Tensor]) -> list[Tensor]:
    """Return what all tensors get from a sum of all states, each with a weight of its own."""
    states_td = states.hidden_td.float()
    loss = (states_td * torch.linspace(-1, 1, states_td.numel()).view_as(states_td)).sum()
    return list(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))


def compare(methods: Sequence[Method], backbone: Backbone, **given: Any) -> None:
    """Require the same bits with and without the op, and that it was used."""
    found = []
    for off in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            watched = Watched(patch, off=off)
            made, trained = parts(methods, backbone, **given)
            states = forward(backbone, made)
            assert watched.layers == (0 if off else LAYERS - 1)
            found.append([states.hidden_td, *gradients(states, trained)])
    assert any(float(grad.abs().max()) > 0 for grad in found[0][1:])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("spec", LOW_RANK, ids=str)
def test_states_and_gradients_have_the_bits_of_the_ops_one_by_one(
    spec: dict[str, Any], backbone: Backbone
) -> None:
    compare([parse_method(spec)], backbone)


def test_so_do_those_of_a_gang(backbone: Backbone) -> None:
    compare([parse_method(spec) for spec in LOW_RANK], backbone)


def test_so_do_those_beside_matrices_that_do_not_train(backbone: Backbone) -> None:
    compare([parse_method(LOW_RANK[0])] * 2, backbone, some=True)


def test_so_do_those_of_rows_that_begin_alike(backbone: Backbone) -> None:
    start = random_ids(20)
    rows = [torch.cat([start, random_ids(own, seed=own)]) for own in (20, 10, 12)]
    tree = share_starts([row.numpy() for row in rows], device="cpu")
    assert tree is not None
    lengths = tuple(len(row) for row in rows)
    compare([parse_method(LOW_RANK[0])], backbone, lengths=lengths, tree=tree)


@pytest.mark.parametrize("spec", OTHERS, ids=str)
def test_what_acts_otherwise_is_computed_one_by_one(
    spec: dict[str, Any], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    made, _ = parts([parse_method(spec)], backbone, dropout=DropoutSource(seed=1, step=1))
    forward(backbone, made)
    assert watched.layers == 0


def test_so_is_what_does_not_train(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    made, _ = parts([parse_method(LOW_RANK[0])], backbone)
    with torch.no_grad():
        forward(backbone, made)
    assert watched.layers == 0


def test_so_are_matrices_that_several_places_share(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    (part,), _ = parts([parse_method(LOW_RANK[0])], backbone)
    assert part.terms is not None
    shared = part.terms.linears["layers.0.mlp.down_proj"]
    linears = {**part.terms.linears, "layers.1.mlp.down_proj": shared}
    forward(backbone, [replace(part, terms=replace(part.terms, linears=linears))])
    assert watched.layers == 0


def test_layers_below_the_lowest_that_trains_keep_nothing(backbone: Backbone) -> None:
    every, still_every, two_of_three = (
        _kept_bytes(
            backbone,
            {"type": "lora", "rank": 2, "target_modules": [f"layers.{lowest}.mlp.down_proj"]},
        )
        for lowest in range(LAYERS - 1)
    )
    assert every == still_every  # a layer below shares its memory with none
    assert 3 * two_of_three < 2 * every  # for the last one's stream, an end, is not kept


def test_what_is_kept_goes_with_the_states(backbone: Backbone) -> None:
    made, _ = parts([parse_method(LOW_RANK[0])], backbone)
    gc.disable()
    try:
        states = forward(backbone, made)
        kept = weakref.ref(_node(states).stack)
        assert kept() is not None
        del states
        assert kept() is None
    finally:
        gc.enable()


def test_what_is_kept_goes_with_the_backward(backbone: Backbone) -> None:
    made, trained = parts([parse_method(LOW_RANK[0])], backbone)
    states = forward(backbone, made)
    kept = weakref.ref(_node(states).stack)
    gradients(states, trained)
    assert kept() is None


def _kept_bytes(backbone: Backbone, spec: dict[str, Any]) -> int:
    made, _ = parts([parse_method(spec)], backbone)
    return sum(room.nbytes for room in _node(forward(backbone, made)).stack._rooms)


def _node(states: States) -> Any:
    """Return the op's node in the graph of some states."""
    seen, waiting = set(), [states.hidden_td.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "_LayersBackward":
            return node
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    raise AssertionError("No layers were computed as one op.")
