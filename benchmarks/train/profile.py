"""A side that says where the time of our training steps goes, and what its products alone need.

Parts are self times: an op's own (Python and C++ that torch does not see included), its backward's,
and torch's ops by name. The floor is the time of all products of a step at the rate that one large
product reaches on this machine.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.sides import JSON, serve
from benchmarks.train.ours import Recorder, train_alone
from core.bases import read_manifest
from models.nn import kernels
from models.nn.backbone import pick_dtype
from models.nn.kernels import OpTable
from models.nn.shape import HEAD
from models.spec import Metrics, TrainerMessage, TrainOrder

TOP = 14
RATE_ROWS, RATE_INNER, RATE_OUT = 1024, 576, 1536
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::mkldnn", "mkldnn::")


class Profiled(Recorder):
    """Profiles from the end of the first step to the end of the last."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self._steps = steps

    def say(self, message: TrainerMessage) -> None:
        """Start or stop where a step ends."""
        super().say(message)
        if isinstance(message, Metrics) and "train_loss" in message.values:
            if len(self.steps) == 1:
                self.profiler.start()
            elif len(self.steps) == self._steps:
                self.profiler.stop()


def answer(question: JSON) -> JSON:
    """Train what the order says and take it apart."""
    order = msgspec.convert(question["order"], TrainOrder)
    work = tempfile.mkdtemp(dir=order.work_folder)
    _name_ops()
    recorder = Profiled(question["steps"])
    try:
        train_alone(msgspec.structs.replace(order, work_folder=work), recorder)
    finally:
        shutil.rmtree(work)
    steps = question["steps"] - 1
    seconds = (recorder.steps[-1][0] - recorder.steps[0][0]) / steps
    parts: Counter[str] = Counter()
    for row in recorder.profiler.key_averages():
        parts[_part_of(row.key)] += row.self_cpu_time_total / 1e6 / steps
    parts["between torch's ops"] = max(seconds - sum(parts.values()), 0.0)
    rate = _rate()
    floor = _operations(order, question) / rate
    return {
        "milliseconds": round(1000 * seconds, 1),
        "parts": {name: round(1000 * value, 1) for name, value in parts.most_common(TOP)},
        "floor_milliseconds": round(1000 * floor, 1),
        "gigaflops": round(rate / 1e9, 1),
        "share_of_floor": round(floor / seconds, 3),
    }


def _name_ops() -> None:
    """Have every op of the table appear under its own name."""
    table = kernels.ops(torch.device("cpu"))

    def named(name: str, form: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with record_function(f"op {name}"):
                return form(*arguments, **options)

        return call

    wrapped = OpTable(
        **{field.name: named(field.name, getattr(table, field.name)) for field in fields(OpTable)}
    )
    # The choice is made once per device, behind every caller: there is no other place to name ops.
    kernels._choose = lambda _: wrapped  # type: ignore[assignment]  # noqa: SLF001


def _part_of(key: str) -> str:
    """Return what a profiled name is counted as."""
    if key.startswith(PRODUCTS):
        return "products by torch"
    return key.removeprefix("autograd::engine::evaluate_function: ")


def _operations(order: TrainOrder, question: JSON) -> float:
    """Return the multiplications and additions of a step's products: base, adapter, head."""
    shape = read_manifest(Path(order.base_folder)).shape
    linears = {name: size for name, size in shape["linears"].items() if name != HEAD}
    weights = sum(out * inner for out, inner in linears.values())
    rank = question["rank"]
    adapter = sum(rank * (out + inner) for out, inner in linears.values())
    head = shape["hidden"] * shape["vocab"]
    tokens, labelled = question["tokens_per_step"], question["labelled_per_step"]
    return tokens * (4 * weights + 6 * adapter) + labelled * 4 * head


def _rate() -> float:
    """Return the operations a second of one product over many rows."""
    rows, weight = (
        torch.randn(size).to(pick_dtype())
        for size in ((RATE_ROWS, RATE_INNER), (RATE_OUT, RATE_INNER))
    )
    best = 1e9
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * RATE_ROWS * RATE_INNER * RATE_OUT / best


if __name__ == "__main__":
    serve(answer)
