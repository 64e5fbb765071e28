"""One row: the tokens of one choice or one input of a request, and how far it has come."""

import hashlib
import struct
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Literal

from models.spec import SamplingSpec
from models.wire import AdapterRef

if TYPE_CHECKING:
    from torch import Tensor

    from worker.engine.generation import Generation
    from worker.engine.reading import Reading
    from worker.engine.request import Request
    from worker.engine.sampler import Draw, Drawn
    from worker.engine.text import TextStream
    from worker.engine.tree import Tree

_UINT64 = 2**64
_FLOAT32_BELOW_ONE = 1.0 - 2.0**-24

Scored = tuple[int, int]
"""A row of a sequence, and a token whose probability in the next place is wanted."""


@dataclass(frozen=True, slots=True)
class Footing:
    """How a row stands in a step because of its adapter; the default is the base's."""

    owner: str | None = None
    """The digest whose terms act on the row; none if all that it has is a prefix or a head."""
    group: str | None = None
    """The digest of an adapter that shares no step with others."""
    rows: int = 0
    """Positions of the adapter's own that stand before the first token."""
    eager: bool = False
    """Whether the C++ step is there and does not compute what the adapter does."""


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """What one row needs from admission to its last token; it computes nothing."""

    request: "Request"
    index: int
    prompt: list[int]
    """The tokens to compute first; with a tree, its nodes are the last of them."""
    footing: Footing = field(default_factory=Footing)
    tree: "Tree | None" = None
    """Continuations of the prompt that do not see each other."""
    scored: Items[Scored] = ()
    """What is to be scored, in order of the rows."""
    top: int = 0
    """How many alternatives to report for what is scored."""
    pooling: Literal["last", "mean"] | None = None
    """How final hidden states are gathered, if they are wanted."""
    slot: int | None = None
    """Where its keys and values lie, once admitted."""
    computed: int = 0
    """Tokens whose keys and values are in the slot."""
    cached: int = 0
    """Those of them that were not computed for it."""
    keys: Items[bytes] = ()
    """What its tokens are known by, block by block; none if it shares them with nobody."""
    lacks: bytes | None = None
    """That of the block which it would compute next and others would copy."""

    @property
    def adapter(self) -> AdapterRef | None:
        """The adapter version it began with and ends with; none is the base."""
        return self.request.adapter

    @property
    def prefilling(self) -> bool:
        """Whether some of the prompt is still to be computed."""
        return self.computed < len(self.prompt)

    @property
    def trunk(self) -> int:
        """How many first tokens stand in a line, without the nodes of a tree."""
        return len(self.prompt) - (len(self.tree.tokens) if self.tree else 0)

    @property
    def in_tree(self) -> bool:
        """Whether what is to be computed next are nodes of a tree."""
        return self.tree is not None and self.computed >= self.trunk

    @property
    def eager(self) -> bool:
        """Whether the C++ step does not compute what comes next."""
        return self.in_tree or self.footing.eager

    @property
    def left(self) -> int:
        """How many tokens of the prompt may be computed next: the nodes of a tree come apart."""
        end = len(self.prompt) if self.in_tree else self.trunk
        return end - self.computed

    @property
    def skippable(self) -> int:
        """How many first tokens need no output of their own, so that known keys will do."""
        first = self.scored[0][0] if self.scored else len(self.prompt) - 1
        return 0 if self.pooling == "mean" else min(first, len(self.prompt) - 1)

    @property
    def reach(self) -> int:
        """How many positions of its slot may have been written to."""
        return self.footing.rows + len(self.prompt)


@dataclass(eq=False, slots=True, kw_only=True)
class Choice(Sequence):
    """One choice of a generation."""

    request: "Generation"
    limit: int
    """How many tokens it may generate; of none, what is drawn behind its prompt is not taken."""
    seed: int
    text: "TextStream"
    draw: "Draw | None" = None
    """How each of its tokens is drawn, if all of them are drawn alike."""
    told_together: int = 1
    """So many tokens are told at once."""
    own: int = 0
    """Where the request's own tokens begin, after demonstrations."""
    spaced: bool = False
    """Whether the next of them to be shown begins with a space that is not in their text."""
    generated: list[int] = field(default_factory=list)
    untold: "list[Drawn]" = field(default_factory=list)
    """Tokens that are not in its text yet."""
    told_at: float = -inf
    """When it was told something last, by the monotonic clock."""

    @property
    def sampling(self) -> SamplingSpec:
        """How its tokens are drawn."""
        return self.request.sampling

    @property
    def last_token(self) -> int:
        """The token that the next decode step reads."""
        return self.generated[-1]

    @property
    def reach(self) -> int:
        """See `Sequence.reach`."""
        return self.footing.rows + len(self.prompt) + len(self.generated)

    def uniform(self, *, ahead: int = 0) -> float:
        """Return the number in [0, 1) that draws its next token, or one so many behind that.

        It depends on nothing but the seed and the position.
        """
        position = len(self.prompt) + len(self.generated) + ahead
        return _hash(self.seed, position) / _UINT64 * _FLOAT32_BELOW_ONE


@dataclass(eq=False, slots=True, kw_only=True)
class Excerpt(Sequence):
    """One input of a reading, or some of the labels of one."""

    request: "Reading"
    pooled: "Tensor | None" = None
    """(d,) float64: the sum of final hidden states so far, or the last one."""
    logprobs: list[float] = field(default_factory=list)
    """Those of `scored`, as far as computed."""


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index` of a request that was given `seed`."""
    return _hash(seed % _UINT64, index)


def _hash(first: int, second: int) -> int:
    digest = hashlib.blake2b(struct.pack("<QQ", first, second), digest_size=8).digest()
    return int.from_bytes(digest, "little")
