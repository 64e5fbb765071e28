"""A side that says where the time of our training steps goes, and what its products alone need.

Parts are self times: an op's own (Python and C++ that torch does not see included), its backward's,
and torch's ops by name. The floor is the time of all products of weights that the ops are asked for
in a step at the rate that one large product reaches on this machine; attention's are not counted.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.rate import measure_rate
from benchmarks.sides import JSON, serve
from benchmarks.train.ours import Recorder, train_alone
from models.nn import kernels
from models.nn.kernels import Heads, Layer, OpTable
from models.nn.kernels.table import Update, Weight
from models.spec import Metrics, TrainerMessage, TrainOrder

TOP = 14
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::mkldnn", "mkldnn::")


class Profiled(Recorder):
    """Profiles from the end of the warm steps to the end of the last.

    The first two steps get memory from the system, which clears its pages; later ones use it again.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.warm = min(2, steps - 1)
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.operations = 0
        """Multiplications and additions of the products of the steps that are profiled."""
        self._steps = steps
        self._profiles = False

    def count(self, operations: int) -> None:
        """Add those of one call."""
        if self._profiles:
            self.operations += operations

    def say(self, message: TrainerMessage) -> None:
        """Start or stop where a step ends."""
        super().say(message)
        if isinstance(message, Metrics) and "train_loss" in message.values:
            if len(self.steps) == self.warm:
                self._profiles = True
                self.profiler.start()
            elif len(self.steps) == self._steps:
                self._profiles = False
                self.profiler.stop()


def answer(question: JSON) -> JSON:
    """Train what the order says and take it apart; a process can be asked once."""
    order = msgspec.convert(question["order"], TrainOrder)
    work = tempfile.mkdtemp(dir=order.work_folder)
    recorder = Profiled(question["steps"])
    _watch_ops(recorder)
    try:
        train_alone(msgspec.structs.replace(order, work_folder=work), recorder)
    finally:
        shutil.rmtree(work)
    ends = [end for end, *_ in recorder.steps[recorder.warm - 1 :]]
    steps = len(ends) - 1
    seconds = (ends[-1] - ends[0]) / steps
    parts: Counter[str] = Counter()
    for row in recorder.profiler.key_averages():
        parts[_part_of(row.key)] += row.self_cpu_time_total / 1e6 / steps
    parts["between torch's ops"] = max(seconds - sum(parts.values()), 0.0)
    rate, operations = measure_rate(), recorder.operations / steps
    return {
        "milliseconds": round(1000 * seconds, 1),
        "parts": {name: round(1000 * value, 1) for name, value in parts.most_common(TOP)},
        "operations": operations,
        "gigaflops": round(rate / 1e9, 1),
        "floor_milliseconds": round(1000 * operations / rate, 1),
        "share_of_floor": round(operations / rate / seconds, 3),
    }


def _watch_ops(recorder: Profiled) -> None:
    """Have every op of the table appear under its own name, and its products be counted."""
    table = kernels.ops(torch.device("cpu"))

    def watched(name: str, form: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if form is None:
            return None
        operations_of = COUNTS.get(name, lambda *_, **__: 0)

        def call(*arguments: Any, **options: Any) -> Any:
            with record_function(f"op {name}"):
                result = form(*arguments, **options)
            if result is not None:  # else its part is asked of others
                recorder.count(operations_of(*arguments, **options))
            return result

        return call

    wrapped = OpTable(
        **{field.name: watched(field.name, getattr(table, field.name)) for field in fields(OpTable)}
    )
    # The choice is made once per device, behind every caller: there is no other place to name ops.
    kernels._choose = lambda _: wrapped  # type: ignore[assignment]  # noqa: SLF001


def _part_of(key: str) -> str:
    """Return what a profiled name is counted as."""
    if key.startswith(PRODUCTS):
        return "products by torch"
    return key.removeprefix("autograd::engine::evaluate_function: ")


def _count_project(x_ti: Tensor, *, weight: Weight, updates: Sequence[Update] = ()) -> int:
    """Of a frozen weight with what trains beside it, forward and backward."""
    return _count_product(len(x_ti), weight, updates, passes=2 if x_ti.requires_grad else 1)


def _count_product(rows: int, weight: Weight, updates: Sequence[Update], *, passes: int) -> int:
    operations = 2 * passes * rows * weight.weight_oi.numel()
    for update in updates:
        (first, last), down, up = update.rows, update.down_ri.numel(), update.up_or.numel()
        operations += 2 * (last - first) * ((passes + 1) * down + 3 * up)
    return operations


def _count_layers(
    x_td: Tensor,
    normed_td: Tensor,
    *,
    layers: Sequence[Layer],
    updates: Sequence[Sequence[Update]],
    heads: Heads,  # noqa: ARG001 - attention's are not counted
) -> int:
    """Of all products; from the first one on that something trains in they have a backward."""
    operations, passes = 0, 2 if x_td.requires_grad or normed_td.requires_grad else 1
    weights = chain(*(layer.weights for layer in layers))
    for weight, own in zip(weights, updates, strict=True):
        operations += _count_product(len(x_td), weight, own, passes=passes)
        if any(one.down_ri.requires_grad or one.up_or.requires_grad for one in own):
            passes = 2
    return operations


def _count_cross_entropy(hidden_nd: Tensor, *, weight: Weight, **_: Any) -> int:
    """Logits, and the gradient of the states."""
    return 4 * len(hidden_nd) * weight.weight_oi.numel()


COUNTS: dict[str, Callable[..., int]] = {
    "project": _count_project,
    "layers": _count_layers,
    "linear_cross_entropy": _count_cross_entropy,
}


if __name__ == "__main__":
    serve(answer)
