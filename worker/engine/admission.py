"""Whether the C++ step may serve a base: it must compute what the network itself computes.

Shapes: T rows of the probe, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import structlog
import torch
from torch import Tensor

from models.nn.attention import PackedCausal
from models.nn.backbone import Backbone
from models.nn.executors import NOBODY
from models.nn.kernels.native import Unavailable, find
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.model import StepModel, Unsuited
from models.nn.kernels.native.step import Form, NativeStep
from models.nn.quantized import unpack
from worker.engine.blocks import Blocks
from worker.engine.native import NativeRunner

BOUND = 0.05
"""How far logits may be from the network's, relative to their spread; bfloat16 alone costs 0.01
to 0.03, a wrong angle, mask or norm more than 0.1."""
LARGEST_COPY = 4 * 1024**3
"""The network is computed in float32 where that takes no more bytes, else as it is served."""
_FORMS: dict[str, tuple[Form, ...]] = {
    "amx": ("amx", "avx512"),
    "avx512": ("avx512",),
    "avx2": ("avx2",),
}
"""What is tried, by what the processor has."""
_LENGTHS = (150, 67, 1)
_DECODED = 3

log = structlog.get_logger(__name__)


@torch.inference_mode()
def admit(backbone: Backbone, blocks: Blocks) -> tuple[NativeRunner | None, str]:
    """Return what computes steps natively, if anything does, and in a few words what it is or why.

    The step is tried by tiles where there are any, then by vectors; each on prompts in chunks and
    then tokens one by one, in several slots, which are left empty.
    """
    try:
        library = find()
        model = StepModel.of(
            backbone,
            library,
            keys=blocks.keys,
            values=blocks.values,
            codes=library.reads_codes,
            rounded=library.reads_rounded,
            screens=True,
        )
        probe = _Probe(backbone, blocks)
    except (Unavailable, Unsuited, MemoryError, RuntimeError) as error:
        return None, f"plain torch: {error}"
    for form in _FORMS[library.instructions]:
        step = NativeStep(model, library, form=form)
        distance = probe.distance(step)
        if distance <= BOUND:
            log.info("native_step", form=form, distance=distance)
            return NativeRunner(step, backbone.shape, library), f"C++ with {form}"
        log.warning("native_step_refused", form=form, distance=distance, bound=BOUND)
    return None, f"plain torch: the C++ step was {distance:.3f} from the network"


class _Probe:
    """Sequences, and their logits by the network."""

    def __init__(self, backbone: Backbone, blocks: Blocks) -> None:
        self._blocks = blocks
        lengths = [min(length, blocks.context) for length in _LENGTHS[: blocks.rows]]
        generator = torch.Generator().manual_seed(1)
        ids_t = torch.randint(backbone.shape.vocab, (sum(lengths),), generator=generator)
        self._sequences = torch.split(ids_t, lengths)
        weights: dict[str, Tensor] = {}
        parameters = dict(backbone.network.named_parameters())
        if sum(4 * parameter.numel() for parameter in parameters.values()) <= LARGEST_COPY:
            weights = {
                name: unpack(parameter, dtype=torch.float32)
                for name, parameter in parameters.items()
            }
        self._expected = [_network_logits(backbone.using(weights), ids) for ids in self._sequences]

    def distance(self, step: NativeStep) -> float:
        """Return the root mean square difference of all logits over their root mean square."""
        found = self._compute(step)
        for slot, ids_t in enumerate(self._sequences):
            self._blocks.wipe(slot, length=len(ids_t))
        expected_tv = _centre(torch.cat(self._expected))
        difference_tv = _centre(torch.cat(found)) - expected_tv
        return float(difference_tv.norm() / expected_tv.norm())

    def _compute(self, step: NativeStep) -> list[Tensor]:
        """Return (T, V) of each sequence, from steps in which all of them have rows."""
        found: list[list[Tensor]] = [[] for _ in self._sequences]
        parts = [list(_cut(ids_t.tolist(), slot)) for slot, ids_t in enumerate(self._sequences)]
        for turn in range(max(map(len, parts))):
            runs = [part[turn] for part in parts if turn < len(part)]
            rows = sum(len(run.ids) for run in runs)
            logits_tv = step(runs).logits(range(rows))
            pieces = torch.split(logits_tv.clone(), [len(run.ids) for run in runs])
            for run, piece in zip(runs, pieces, strict=True):
                found[run.slot].append(piece)
        return [torch.cat(pieces) for pieces in found]


def _cut(ids: Sequence[int], slot: int) -> Iterator[Run]:
    """Yield a prompt in two uneven chunks, then single tokens."""
    last = max(0, len(ids) - _DECODED)
    bounds = sorted({0, last // 3, last, *range(last, len(ids) + 1)})
    for start, stop in pairwise(bounds):
        yield Run(slot, start, ids[start:stop])


def _network_logits(backbone: Backbone, ids_t: Tensor) -> Tensor:
    hidden_td = backbone.hidden(
        ids_t,
        positions=torch.arange(len(ids_t)),
        attention=PackedCausal([(0, len(ids_t))]),
        executor=NOBODY,
    )
    return backbone.logits(hidden_td, executor=NOBODY).float()


def _centre(logits_tv: Tensor) -> Tensor:
    """Take away what all logits of a row share, which no softmax sees."""
    return logits_tv - logits_tv.mean(-1, keepdim=True)
