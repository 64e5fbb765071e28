"""What is kept of recorded steps; a stand-in replays by computing over the buffers again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.worker.engine.conftest import World, ask_all, order
from worker.engine import assembly
from worker.engine.engine import Engine
from worker.engine.graphs import MOST, Graphs, graphs_for


class Recorder:
    """Records as a GPU does: the output stays where it is, and a replay fills it anew."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        output = torch.full_like(compute(), float("nan"))

        def replay() -> None:
            self.replayed += 1
            output.copy_(compute())

        return output, replay


def test_the_first_step_of_a_key_is_computed_the_second_recorded_all_later_ones_replayed() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    for value in (1.0, 2.0, 3.0):
        given = torch.tensor([value])
        assert graphs.run("double", lambda x: 2 * x, given).item() == 2 * value
        assert graphs.run("square", lambda x: x * x, given).item() == value * value
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_a_recorded_step_reads_its_own_buffers_only() -> None:
    graphs = Graphs(Recorder())
    given = torch.tensor([1.0])
    graphs.run("key", lambda x: x + 1, given)
    graphs.run("key", lambda x: x + 1, given)
    given.fill_(float("nan"))
    assert graphs.run("key", lambda x: x + 1, torch.tensor([5.0])).item() == 6.0


def test_few_are_kept_and_those_used_last() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    x = torch.ones(1)
    for key in [0, 0, *range(1, MOST), 0, MOST, 0]:
        graphs.run(key, lambda x: x + 1, x)
    assert recorder.recorded == 1
    graphs.forget()
    graphs.run(0, lambda x: x + 1, x)
    assert recorder.replayed == 3


def test_what_cannot_be_recorded_is_computed() -> None:
    def refuse(compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(refuse)
    for value in (1.0, 2.0, 3.0):
        assert graphs.run("key", lambda x: x + 1, torch.tensor([value])).item() == value + 1


def test_a_cpu_records_nothing() -> None:
    assert graphs_for(torch.device("cpu")) is None


def test_tokens_by_recorded_steps_equal_computed_ones(
    world: World, start_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(7)
    orders = [
        order(
            torch.randint(3, 250, (length,), generator=generator).tolist(),
            adapter=adapter,
            max_tokens=max_tokens,
            ignore_eos=True,
        )
        for length, adapter, max_tokens in [
            (3, None, 30),
            (58, world.adapters[0], 12),
            (20, world.adapters[2], 25),
            (9, world.adapters[1], 8),
        ]
    ]
    computed = ask_all(start_engine(rows=4), orders)
    recorder = Recorder()
    monkeypatch.setattr(assembly, "graphs_for", lambda device: Graphs(recorder))
    recorded = ask_all(start_engine(rows=4), orders) + ask_all(start_engine(rows=2), orders)
    assert [answer.ids for answer in recorded] == [answer.ids for answer in computed * 2]
    assert recorder.replayed > recorder.recorded > 2
