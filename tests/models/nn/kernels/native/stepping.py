"""Small Llama-shaped networks in bfloat16, caches for them, and steps over both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.kernels.native import Library, library
from models.nn.kernels.native.adapter import StepAdapter
from models.nn.kernels.native.batch import Run
from models.nn.kernels.native.model import StepModel
from models.nn.kernels.native.step import Form, NativeStep
from tests.models.nn.kernels.native.comparing import needs_avx512

VOCAB, SLOTS, POSITIONS = 160, 4, 220
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("LlamaConfig", {}),
    "biased, tied": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "long heads": ("MistralConfig", {"head_dim": 64, "sliding_window": None}),
    "three heads a key": (
        "MistralConfig",
        {"num_attention_heads": 6, "head_dim": 96, "sliding_window": None},
    ),
    "four heads a key": (
        "MistralConfig",
        {"num_attention_heads": 8, "head_dim": 32, "sliding_window": None},
    ),
    "five heads a key": (
        "MistralConfig",
        {"num_attention_heads": 10, "head_dim": 32, "sliding_window": None},
    ),
    "five heads and 160 inputs": (
        "LlamaConfig",
        {"hidden_size": 160, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 32},
    ),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 4}),
    "scaled angles": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
}
VECTORS = ("avx2", pytest.param("avx512", marks=needs_avx512))
FORMS = (*VECTORS, pytest.param("emulated", marks=needs_avx512))
"""Of the step; every processor with kernels has the first one."""
_COMMON = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def loaded() -> Library:
    found = library()
    assert found is not None
    return found


def make_backbone(
    shape: str = "plain",
    *,
    dtype: torch.dtype = torch.bfloat16,
    vocab: int = VOCAB,
    change: Callable[[Any], object] = lambda _: None,
) -> Backbone:
    """Return a network that spreads its logits; its float32 form has the same numbers.

    `change` may do something to its weights before.
    """
    name, values = SHAPES[shape]
    config = getattr(transformers, name)(**{**_COMMON, **values, "vocab_size": vocab})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            change(network)
    return Backbone(network.bfloat16().to(dtype))


@dataclass
class World:
    """A network, a cache, and the step over them."""

    backbone: Backbone
    step: NativeStep
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(cls, backbone: Backbone, *, form: Form | None = None, **packing: bool) -> "World":
        """Take, unless told, the form by vectors that this processor is given."""
        shape = backbone.shape
        size = (SLOTS, shape.kv_heads, POSITIONS, shape.head_dim)
        keys, values = (
            [torch.zeros(size, dtype=torch.bfloat16) for _ in range(shape.layers)] for _ in range(2)
        )
        form = form or ("avx512" if loaded().trains else "avx2")
        packing = {"rounded": form == "avx2"} | packing
        model = StepModel.of(backbone, loaded(), keys=keys, values=values, **packing)
        return cls(backbone, NativeStep(model, loaded(), form=form), keys, values)

    def logits(self, runs: Sequence[Run]) -> list[Tensor]:
        """Return (T, V) of every run of one step."""
        counts = [len(run.ids) for run in runs]
        logits_tv = self.step(runs).logits(range(sum(counts)))
        return list(logits_tv.clone().split(counts))


@dataclass
class Row:
    """A sequence that is computed in pieces, by one adapter, behind what its slot holds."""

    slot: int
    ids: list[int]
    adapter: StepAdapter | None = None
    before: int = 0
    decodes: bool = False
    """Whether pieces of one token are computed as those that were drawn."""
    pieces: list[Tensor] = field(default_factory=list)

    def runs(self, bounds: Sequence[int]) -> Iterator[Run]:
        for start, stop in pairwise(bounds):
            decodes = self.decodes and stop - start == 1
            yield Run(self.slot, self.before + start, self.ids[start:stop], self.adapter, decodes)


def advance(world: World, rows: Sequence[Row], bounds: Sequence[Sequence[int]]) -> list[Tensor]:
    """Compute all rows side by side, each cut at its bounds, and return the logits of each."""
    cut = [list(row.runs(own)) for row, own in zip(rows, bounds, strict=True)]
    for turn in range(max(map(len, cut))):
        acting = [place for place, runs in enumerate(cut) if turn < len(runs)]
        pieces = world.logits([cut[place][turn] for place in acting])
        for place, piece in zip(acting, pieces, strict=True):
            rows[place].pieces.append(piece)
    return [torch.cat(row.pieces) for row in rows]


def drawn_ids(count: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(3, VOCAB, (count,), generator=generator).tolist()
    return ids


def distance(found: Tensor, expected: Tensor) -> float:
    """Return how far logits are apart, relative to their size."""
    return float((found - expected).norm() / expected.norm())
