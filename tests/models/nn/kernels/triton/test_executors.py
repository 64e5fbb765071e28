"""The executors over a whole trunk compute by these forms what they compute by the plain ones."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn import kernels
from models.nn.executors import Bank, Packed
from models.nn.forward import Part, forward
from models.nn.kernels.plain import PLAIN
from models.nn.kernels.triton.forms import improve
from models.nn.methods import METHODS
from models.nn.terms import Terms
from tests.models.nn.families import compile_prefix, make_backbone, random_ids, random_tensors, run
from tests.models.nn.kernels.triton.agreement import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="compares with a base on the CPU")

LENGTHS = (3, 1)
SHARING = [
    cls(**cls.examples[0]) for cls in METHODS.values() if cls(**cls.examples[0]).shares_batch
]


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("llama-biased-tied")


@pytest.fixture
def on_gpu_forms(monkeypatch):
    """Return a function after which the forms for a GPU run here."""
    table = improve(PLAIN)
    return lambda: monkeypatch.setattr(kernels, "_choose", lambda device_type: table)


def _assert_near(ours, plain):
    assert (ours - plain).norm() <= 1e-3 * plain.norm()


def test_jobs_of_all_kinds_train_in_one_stream(backbone, on_gpu_forms):
    tensors = [random_tensors(method, backbone, seed=i) for i, method in enumerate(SHARING)]
    trained = [
        tensor.requires_grad_()
        for method, own in zip(SHARING, tensors, strict=True)
        for name, tensor in own.items()
        if method.is_trained(name)
    ]
    found = []
    for choose in (lambda: None, on_gpu_forms):
        choose()
        parts = [
            Part(random_ids(4, seed=i), LENGTHS, Terms.of(method, own, backbone.base))
            for i, (method, own) in enumerate(zip(SHARING, tensors, strict=True))
        ]
        hidden = forward(backbone, [*parts, Part(random_ids(4), LENGTHS)]).hidden_td
        loss = (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum()
        grads = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        found.append((hidden, *grads))
    for plain, ours in zip(*found, strict=True):
        _assert_near(ours, plain)


@torch.no_grad()
def test_adapters_of_all_kinds_are_served_in_one_batch(backbone, on_gpu_forms):
    terms = [
        Terms.of(method, random_tensors(method, backbone, seed=seed), backbone.base)
        for seed, method in enumerate(SHARING)
    ]
    prefixes = [None, *(compile_prefix(backbone, own) for own in terms)]
    lengths = tuple(1 + index % 3 for index in range(len(SHARING) + 1))
    slots = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    bank, ids = Bank.of(terms), random_ids(sum(lengths))
    answers = []
    for choose in (lambda: None, on_gpu_forms):
        choose()
        executor = Packed(bank, slots)
        answers.append(run(backbone, ids, executor=executor, lengths=lengths, prefixes=prefixes))
    _assert_near(answers[1], answers[0])
