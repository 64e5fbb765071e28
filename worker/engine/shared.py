"""Keys and values of prompts that were computed before, for whoever may see them.

Whoever begins with the same tokens, under the same adapter bytes and for the same tenant, copies
what is here instead of computing it. Shapes: L layers, K key and value heads, t tokens of a block,
h head dimension.
"""

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice, takewhile
from math import isfinite

from torch import Tensor

from models.nn.tensor_file import largest
from worker.engine.blocks import Blocks
from worker.engine.sequence import Sequence

TOKENS = 32
"""Tokens of a block; fewer are never shared."""
LEAST_LEFT = 2 * TOKENS
"""A prompt with no more tokens left is computed sooner than another one's block is waited for."""
_HASH_BYTES = 16


class SharedPrompts:
    """Blocks by everything that they depend on; the least recently used leave first."""

    def __init__(self, blocks: Blocks, *, budget: int) -> None:
        """Hold at most `budget` bytes; 0 shares nothing."""
        self._blocks = blocks
        self._budget = budget
        self._room = budget // blocks.nbytes(TOKENS)
        """So many blocks of one prompt are known at a time."""
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()
        """(2, L, K, t, h) each, by the hash of all tokens to its end."""
        self._secret = secrets.token_bytes(_HASH_BYTES)
        self.bytes = 0

    def name(self, sequence: Sequence) -> None:
        """Say by what keys the tokens of an admitted sequence may be known."""
        if sequence.request.tenant is not None:
            sequence.keys = list(islice(self._keys(sequence), self._room))

    def look_up(self, sequences: Iterable[Sequence]) -> None:
        """Write what is known of prompts that are being computed to their slots."""
        for sequence in sequences:
            if sequence.prefilling:
                self._copy(sequence)

    def _copy(self, sequence: Sequence) -> None:
        found = list(takewhile(self._held.__contains__, sequence.keys))
        known = min(len(found) * TOKENS, sequence.skippable)
        if known > sequence.computed:
            for key in reversed(found):  # so that a block never outlives those before it
                self._held.move_to_end(key)
            for number in range(sequence.computed // TOKENS, len(found)):
                start = sequence.footing.rows + number * TOKENS
                self._blocks.write(sequence.slot or 0, self._held[found[number]], start=start)
            sequence.cached += known - sequence.computed
            sequence.computed = known
        following = sequence.keys[sequence.computed // TOKENS :]
        worth_waiting = len(sequence.prompt) - sequence.computed > LEAST_LEFT
        helps = following and sequence.computed < sequence.skippable and worth_waiting
        sequence.lacks = following[0] if helps else None

    def keep(self, sequence: Sequence) -> None:
        """Copy what has been computed of a prompt out of its slot, if it is new."""
        keys = sequence.keys[: sequence.computed // TOKENS]
        for number, key in enumerate(keys):
            if key in self._held:
                continue
            start = sequence.footing.rows + number * TOKENS
            block = self._blocks.read(sequence.slot or 0, start=start, stop=start + TOKENS)
            if not isfinite(largest([block])):
                break
            self._held[key] = block
            self.bytes += block.nbytes
        for key in reversed(keys):
            if key in self._held:
                self._held.move_to_end(key)
        while self.bytes > self._budget:
            self.bytes -= self._held.popitem(last=False)[1].nbytes

    def _keys(self, sequence: Sequence) -> Iterator[bytes]:
        """Yield a key for each whole block of tokens that stand in a line behind each other.

        Keys and values depend on every token before, on what the adapter does to rows, and on what
        it puts before them; an adapter that does nothing of the kind shares with the base. What a
        row begins with may have been rounded otherwise, where it was computed for all.
        """
        footing, begun = sequence.footing, sequence.cached
        shaped = footing.owner or footing.group or footing.rows or begun
        adapter = sequence.adapter.digest if sequence.adapter and shaped else ""
        tenant = (sequence.request.tenant or "").encode()
        key = blake2b(tenant, key=self._secret, person=b"tenant").digest()
        key += f"{begun}:{adapter}".encode()
        for first in range(0, sequence.trunk - TOKENS + 1, TOKENS):
            tokens = array("q", sequence.prompt[first : first + TOKENS])
            key = blake2b(key + tokens.tobytes(), digest_size=_HASH_BYTES).digest()
            yield key
