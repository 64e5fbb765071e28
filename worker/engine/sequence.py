"""One row: the tokens of one choice of one request, and how far it has come."""

import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from models.spec import AdapterRef, SamplingSpec

if TYPE_CHECKING:
    from worker.engine.generation import Generation
    from worker.engine.text import TextStream

_UINT64 = 2**64
_FLOAT32_BELOW_ONE = 1.0 - 2.0**-24


@dataclass(eq=False, slots=True)
class Sequence:
    """What one row needs from admission to its last token; it knows no tensor."""

    generation: "Generation"
    index: int
    prompt: list[int]
    limit: int
    """How many tokens it may generate."""
    seed: int
    text: "TextStream"
    echo: "TextStream | None" = None
    """Where the prompt's own tokens go, if they are given back with logprobs."""
    slot: int | None = None
    """Where its keys and values lie, once admitted."""
    computed: int = 0
    """Tokens whose keys and values are in the slot."""
    generated: list[int] = field(default_factory=list)

    @property
    def sampling(self) -> SamplingSpec:
        """How its tokens are drawn."""
        return self.generation.sampling

    @property
    def adapter(self) -> AdapterRef | None:
        """The adapter version it began with and ends with; none is the base."""
        return self.generation.adapter

    @property
    def prefilling(self) -> bool:
        """Whether some of the prompt is still to be computed."""
        return self.computed < len(self.prompt)

    @property
    def last_token(self) -> int:
        """The token that the next decode step reads."""
        return self.generated[-1]

    def next_uniform(self) -> float:
        """Return a number in [0, 1) that depends on nothing but the seed and the position."""
        position = len(self.prompt) + len(self.generated)
        return _hash(self.seed, position) / _UINT64 * _FLOAT32_BELOW_ONE


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index` of a request that was given `seed`."""
    return _hash(seed % _UINT64, index)


def _hash(first: int, second: int) -> int:
    digest = hashlib.blake2b(struct.pack("<QQ", first, second), digest_size=8).digest()
    return int.from_bytes(digest, "little")
