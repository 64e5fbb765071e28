import gc
import math
import weakref

import pytest
import torch

from models.nn.methods import parse_method
from models.spec import LoopSpec
from worker.train.optim import Optimizer, rate_factor

BETA = 0.9

LORA = parse_method({"type": "lora"})


def loop(**values):
    return LoopSpec(**{"n_epochs": 1, "batch_size": 1, "learning_rate": 0.1, **values})


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5] + [1.0] * 9),
        ("cosine", [0.5, 1.0] + [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)]),
    ],
)
def test_schedules(scheduler, expected):
    spec = loop(scheduler=scheduler, warmup_ratio=0.2)
    factors = [rate_factor(step, loop=spec, total_steps=10) for step in range(10)]
    assert factors == pytest.approx(expected)


def test_one_step_learns_at_the_full_rate():
    for ratio in (0.0, 0.05):
        assert rate_factor(0, loop=loop(warmup_ratio=ratio), total_steps=1) == 1.0


def test_gradients_of_a_sum_become_those_of_a_mean_and_are_clipped():
    tensor = torch.zeros(4, requires_grad=True)
    optimizer = Optimizer({"a": tensor}, method=LORA, loop=loop())
    (tensor * 30.0).sum().backward()
    assert optimizer.normalise(10).item() == pytest.approx(6.0)
    optimizer.step(0.0)
    moments = optimizer.state()["exp_avg.a"]
    assert moments.norm().item() == pytest.approx((1 - BETA) * 1.0)


def test_a_method_scales_the_rate_of_its_tensors():
    class Scaled(type(LORA)):
        def learning_rate_scale(self, name):
            return 3.0 if name == "b" else 1.0

    tensors = {name: torch.zeros(1, requires_grad=True) for name in "ab"}
    optimizer = Optimizer(tensors, method=Scaled(), loop=loop(warmup_ratio=0))
    sum(tensors.values()).backward()
    optimizer.step(optimizer.learning_rate(0, total_steps=1))
    assert tensors["b"].item() == pytest.approx(3 * tensors["a"].item())
    assert tensors["a"].item() == pytest.approx(-0.1, rel=1e-4)
    assert not tensors["a"].grad.any()


def test_restored_moments_go_on_to_the_bit():
    def make(value):
        tensors = {"a": torch.tensor([value], requires_grad=True)}
        return tensors, Optimizer(tensors, method=LORA, loop=loop())

    tensors, optimizer = make(1.0)
    for step in range(6):
        if step == 3:
            copy, resumed = make(tensors["a"].item())
            resumed.restore({name: value.clone() for name, value in optimizer.state().items()})
        for run in (tensors, copy) if step >= 3 else (tensors,):
            (run["a"] * (0.3 * step + 0.1)).sum().backward()
        rate = optimizer.learning_rate(step, total_steps=9)
        optimizer.step(rate)
        if step >= 3:
            resumed.step(rate)
    assert copy["a"].item() == tensors["a"].item()


def test_small_tensors_are_joined_by_rate_and_all_keep_their_names_and_shapes():
    class Scaled(type(LORA)):
        def is_trained(self, name):
            return name != "frozen"

        def learning_rate_scale(self, name):
            return 3.0 if name == "b" else 1.0

    generator = torch.Generator().manual_seed(0)
    sizes = {"a": (2, 3), "b": (4,), "frozen": (5,), "c": (1, 7), "large": (256, 256)}
    tensors = {
        name: torch.randn(size, generator=generator, requires_grad=name != "frozen")
        for name, size in sizes.items()
    }
    alone = {
        name: t.detach().clone().requires_grad_() for name, t in tensors.items() if name != "frozen"
    }
    optimizer = Optimizer(tensors, method=Scaled(), loop=loop(weight_decay=0.1))
    groups = [{"params": [t], "lr": 0.3 if name == "b" else 0.1} for name, t in alone.items()]
    expected = torch.optim.AdamW(groups, weight_decay=0.1)
    for step in range(3):
        for held in (tensors, alone):
            sum((held[name] ** 2).sum() * (step + 1) for name in alone).backward()
        optimizer.normalise(1)
        torch.nn.utils.clip_grad_norm_(alone.values(), 1.0)
        optimizer.step(0.1)
        expected.step()
        expected.zero_grad()
    storages = {name: tensors[name].untyped_storage().data_ptr() for name in alone}
    assert storages["a"] == storages["c"]
    assert len(set(storages.values())) == 3
    assert tensors["large"].grad is None
    assert not tensors["a"].grad.any()
    state = optimizer.state()
    assert state.keys() == {
        f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in alone
    }
    for name, tensor in alone.items():
        torch.testing.assert_close(tensors[name], tensor)
        torch.testing.assert_close(state[f"exp_avg.{name}"], expected.state[tensor]["exp_avg"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_casts_and_the_tensors_themselves_have_one_gradient(dtype):
    tensors = {
        name: torch.full(size, 0.5, requires_grad=True)
        for name, size in {"a": (2, 3), "b": (4,), "apart": (2**16,)}.items()
    }
    optimizer = Optimizer(tensors, method=LORA, loop=loop())
    for _ in range(2):  # micro-batches of one step
        casts = optimizer.casts(dtype)
        assert {id(tensor) for tensor in tensors.values()} == set(casts)
        a, b, apart = (casts[id(tensor)] for tensor in tensors.values())
        assert (a.dtype, a.shape, b.shape) == (dtype, (2, 3), (4,))
        (a * 3.0).sum().backward()
        (tensors["b"] * 2.0).sum().backward()
        (apart * 0.5).sum().backward()
        (tensors["apart"] * 0.25).sum().backward()
    squares = 6 * 36 + 4 * 16 + 2**16 * 1.5**2
    assert optimizer.normalise(1).item() == pytest.approx(squares**0.5)
    assert tensors["a"].grad.tolist() == [[6.0] * 3] * 2
    assert tensors["b"].grad.tolist() == [4.0] * 4
    optimizer.step(0.1)
    casts = optimizer.casts(dtype)
    assert casts[id(tensors["a"])] is a
    assert casts[id(tensors["apart"])] is apart
    assert a[0, 0].item() == tensors["a"][0, 0].to(dtype).item() < 0.5
    assert apart[0].item() == tensors["apart"][0].to(dtype).item() < 0.5
    assert not tensors["a"].grad.any()
    assert tensors["apart"].grad is None
    assert apart.grad is None


@pytest.mark.parametrize("size", [2**16, 2**16 - 1])  # by itself, and joined
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_several_passes_are_summed_in_float32(size, dtype):
    tensors = {"a": torch.zeros(size, requires_grad=True)}
    optimizer = Optimizer(tensors, method=LORA, loop=loop(max_grad_norm=1e9))
    scales = [1.0] + [2.0**-9] * 8  # of which bfloat16 would lose all but the first
    for scale in scales:
        (optimizer.casts(dtype)[id(tensors["a"])] * scale).sum().backward()
    assert optimizer.normalise(1).item() == pytest.approx(size**0.5 * sum(scales), rel=1e-6)


def test_a_step_of_one_pass_is_gathered_once(monkeypatch):
    tensors = {name: torch.zeros(4, requires_grad=True) for name in "ab"}
    optimizer = Optimizer(tensors, method=LORA, loop=loop())
    sums = []
    monkeypatch.setattr("worker.train.held.add_together", lambda *_: sums.append(1))
    for _ in range(2):
        casts = optimizer.casts(torch.bfloat16)
        sum(casts[id(tensor)].sum() for tensor in tensors.values()).backward()
        optimizer.normalise(1)
        optimizer.step(0.1)
    assert len(sums) == 2


def test_nothing_is_kept_of_an_optimizer_that_is_gone():
    tensors = {"a": torch.zeros(2**16, requires_grad=True)}
    optimizer = Optimizer(tensors, method=LORA, loop=loop())
    leaf = optimizer.casts(torch.bfloat16)[id(tensors["a"])]
    leaf.sum().backward()
    optimizer.normalise(1)
    optimizer.step(0.1)
    gone = weakref.ref(leaf)
    del leaf, optimizer
    gc.collect()
    assert gone() is None


def test_tensors_of_the_head_are_not_among_the_casts():
    tensors = {
        name: torch.ones(4, requires_grad=True)
        for name in ("lm_head.scale", "layers.0.mlp.up_proj.scale")
    }
    casts = Optimizer(tensors, method=LORA, loop=loop()).casts(torch.bfloat16)
    assert set(casts) == {id(tensors["layers.0.mlp.up_proj.scale"])}


def test_what_has_flown_to_casts_is_forgotten_with_the_rest():
    tensors = {name: torch.full((2, 3), 0.5, requires_grad=True) for name in "ab"}
    optimizer = Optimizer(tensors, method=LORA, loop=loop())
    for _ in range(2):
        casts = optimizer.casts(torch.bfloat16)
        sum((casts[id(tensor)] * 3.0).sum() for tensor in tensors.values()).backward()
        optimizer.forget()
    assert optimizer.normalise(1).item() == 0.0


@pytest.mark.parametrize(("tensors", "size"), [(1, (4096, 4096)), (128, (2**15 + 3,))])
def test_the_norm_of_many_numbers_is_precise(tensors, size):
    given = {str(number): torch.zeros(size, requires_grad=True) for number in range(tensors)}
    optimizer = Optimizer(given, method=LORA, loop=loop())
    generator = torch.Generator().manual_seed(0)
    squares = 0.0
    for tensor in given.values():
        gradient = torch.randn(size, generator=generator)
        (tensor * gradient).sum().backward()
        squares += gradient.double().square().sum().item()
    assert optimizer.normalise(1).item() == pytest.approx(squares**0.5, rel=2e-6)


def test_a_large_tensor_without_a_gradient_stays_as_it_is_through_a_checkpoint():
    def make(values):
        tensors = {name: value.clone().requires_grad_() for name, value in values.items()}
        return tensors, Optimizer(tensors, method=LORA, loop=loop(weight_decay=0.1))

    first = {"used": torch.ones(2**16), "unused": torch.ones(2**16)}
    tensors, optimizer = make(first)
    for _ in range(2):
        tensors["used"].sum().backward()
        optimizer.normalise(1)
        optimizer.step(0.1)
        state = optimizer.state()
        assert "exp_avg.unused" not in state
        tensors, optimizer = make({name: tensor.detach() for name, tensor in tensors.items()})
        optimizer.restore(state)
    assert torch.equal(tensors["unused"], first["unused"])
    assert optimizer.state()["step.used"] == 2
    assert not torch.equal(tensors["used"], first["used"])
