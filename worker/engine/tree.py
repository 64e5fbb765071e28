"""Several continuations of one prompt in one slot: none sees another, all see the prompt.

What continuations begin with in common is computed once. Shapes: N nodes, t rows of a chunk, s
positions of a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.nn.attention import causal_mask

ROOT = -1
"""The last token of the prompt, as a parent of nodes."""

Continuation = Sequence[tuple[int, bool]]
"""Tokens, and of each whether it is scored."""


@dataclass(eq=False, slots=True)
class Tree:
    """Tokens behind a prompt; a node's parent comes before it."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    """1 for what directly follows the prompt."""
    _children: dict[tuple[int, int], int] = field(default_factory=dict, init=False)
    _ancestors: Tensor | None = field(default=None, init=False)

    def add(self, continuation: Continuation) -> list[tuple[int, int]]:
        """Grow by a continuation; return its scored tokens with the nodes they follow.

        Its last token is nobody's parent and gets no node.
        """
        node, edges = ROOT, []
        for place, (token, scored) in enumerate(continuation):
            if scored:
                edges.append((node, token))
            if place < len(continuation) - 1:
                node = self._child(node, token)
        return edges

    def lacks(self, continuation: Continuation) -> int:
        """Return how many nodes `add` would append."""
        node: int | None = ROOT
        for place, (token, _) in enumerate(continuation[:-1]):
            node = self._children.get((node if node is not None else ROOT, token))
            if node is None:
                return len(continuation) - 1 - place
        return 0

    def positions(self, start: int, stop: int, *, trunk: int) -> list[int]:
        """Return the positions, in their own continuation, of tokens [start, stop) of a slot.

        The first `trunk` positions are the prompt's and what stands before it.
        """
        plain = list(range(start, min(stop, trunk)))
        nodes = self.depths[max(start - trunk, 0) : max(stop - trunk, 0)]
        return plain + [trunk - 1 + depth for depth in nodes]

    def visible(self, start: int, stop: int, *, trunk: int, window: int | None) -> Tensor:
        """Return (t, s) bool for rows [start, stop) over positions [0, stop) of their slot."""
        positions_s = torch.tensor(self.positions(0, stop, trunk=trunk))
        visible_ts = causal_mask(positions_s[start:], positions_s, window=window)
        first = max(start, trunk)
        if first < stop:
            related_nn = self._related()[first - trunk : stop - trunk, : stop - trunk]
            visible_ts[first - start :, trunk:] &= related_nn
        return visible_ts

    def _child(self, node: int, token: int) -> int:
        key = (node, token)
        if key not in self._children:
            self._children[key] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(1 if node == ROOT else self.depths[node] + 1)
            self._ancestors = None
        return self._children[key]

    def _related(self) -> Tensor:
        """Return (N, N) bool: whether the column is the row's node or one above it."""
        if self._ancestors is None:
            self._ancestors = torch.eye(len(self.tokens), dtype=torch.bool)
            for node, parent in enumerate(self.parents):
                if parent != ROOT:
                    self._ancestors[node] |= self._ancestors[parent]
        return self._ancestors
