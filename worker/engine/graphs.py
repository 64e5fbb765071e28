"""Decode steps as CUDA graphs: what repeats in its shapes is recorded once and then replayed.

A step's launches cost more than its arithmetic while few rows decode. Nothing here knows of CUDA
but `record`, which the device decides about.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

Compute = Callable[..., Tensor]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""From a computation over buffers that stay to its output, which stays too, and a replay."""

MOST = 16
"""Graphs kept; each holds the activations of a step."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Recorded:
    compute: Compute
    """What was recorded: it keeps alive what the recording reads."""
    inputs: tuple[Tensor, ...]
    output: Tensor
    replay: Callable[[], None]


class Graphs:
    """Recorded steps by what they depend on beside their inputs; least recently used leave."""

    def __init__(self, record: Record) -> None:
        self._record: Record | None = record
        self._known: OrderedDict[Hashable, _Recorded | None] = OrderedDict()

    def run(self, key: Hashable, compute: Compute, *inputs: Tensor) -> Tensor:
        """Return `compute(*inputs)`, valid until the next call.

        Of a key, the first step is computed, which also makes what is made once; the second is
        recorded. Inputs of a key have the same shapes; all else that is read must stay in place.
        """
        if self._record is None:
            return compute(*inputs)
        if key not in self._known:
            self._keep(key, None)
            return compute(*inputs)
        recorded = self._known[key]
        if recorded is None:
            try:
                recorded = self._capture(compute, inputs, record=self._record)
            except RuntimeError as error:
                # Whatever cannot be recorded, such as a wait for the device, still computes.
                log.warning("graphs_unavailable", error=str(error))
                self._record = None
                self._known.clear()
                return compute(*inputs)
        self._keep(key, recorded)
        for buffer, given in zip(recorded.inputs, inputs, strict=True):
            buffer.copy_(given)
        recorded.replay()
        return recorded.output

    def forget(self) -> None:
        """Drop all: an adapter left, or a step failed."""
        self._known.clear()

    def _capture(
        self, compute: Compute, inputs: tuple[Tensor, ...], *, record: Record
    ) -> _Recorded:
        buffers = tuple(given.clone() for given in inputs)
        output, replay = record(lambda: compute(*buffers))
        return _Recorded(compute, buffers, output, replay)

    def _keep(self, key: Hashable, recorded: _Recorded | None) -> None:
        self._known[key] = recorded
        self._known.move_to_end(key)
        while len(self._known) > MOST:
            self._known.popitem(last=False)


def graphs_for(device: torch.device) -> Graphs | None:
    """Return where steps are recorded, or None where that is not possible."""
    return Graphs(_record_on_gpu) if device.type == "cuda" else None


def _record_on_gpu(compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record on a stream of its own, behind one more run, as libraries allocate at their first."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads bring adapters meanwhile, which is no business of a recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = compute()
    return output, graph.replay
