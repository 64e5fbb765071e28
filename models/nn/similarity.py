"""How alike texts are, by their words or by their hidden states, and which of them stand for all.

Shapes: n texts, d hidden.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from collections.abc import Sequence

    import bm25s
    import torch
    from torch import Tensor
else:
    torch = lazy_loader.load("torch")
    bm25s = lazy_loader.load("bm25s")

_WORD = re.compile(r"\w+")
_LEAST = 1e-6


class WordIndex:
    """BM25 over a few texts, in the form of Lucene; words are runs of letters, case apart."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index the texts."""
        words = [_words(text) for text in texts]
        self._known: set[str] = set().union(*words)
        self._count = len(texts)
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)

    def scores(self, text: str) -> Tensor:
        """Return (n,) float32: how well each text answers the words of this one."""
        words = _words(text)
        if self._known.isdisjoint(words):  # of an empty word that no text has, the library fails
            return torch.zeros(self._count)
        return torch.from_numpy(self._index.get_scores(words))


def word_similarities(texts: Sequence[str]) -> Tensor:
    """Return (n, n) float32: BM25 scores of the columns for the rows, over the row's own score."""
    index = WordIndex(texts)
    scores_nn = torch.stack([index.scores(text) for text in texts])
    return scores_nn / scores_nn.diagonal()[:, None].clamp(min=_LEAST)


def cosines(features_nd: Tensor, queries_qd: Tensor) -> Tensor:
    """Return (q, n) cosines of queries (q, d) with features (n, d), the features' mean taken away.

    Hidden states share a large common part, which would make all of them alike.
    """
    mean_d = features_nd.mean(0)
    return _unit(queries_qd.to(features_nd) - mean_d) @ _unit(features_nd - mean_d).T


def cover(similarity_nn: Tensor, count: int) -> list[int]:
    """Return columns, picked one by one, each raising the sum of the rows' maxima most.

    Greedy facility location: Nemhauser, Wolsey and Fisher, Mathematical Programming 14 (1978).
    """
    covered_n = similarity_nn.min().expand(len(similarity_nn))
    found: list[int] = []
    for _ in range(min(count, len(similarity_nn))):
        sums_n = torch.maximum(similarity_nn, covered_n[:, None]).sum(0)
        sums_n[found] = -torch.inf
        found.append(int(sums_n.argmax()))
        covered_n = torch.maximum(covered_n, similarity_nn[:, found[-1]])
    return found


def _words(text: str) -> list[str]:
    """Return a text's words; one without any has the empty word."""
    return _WORD.findall(text.lower()) or [""]


def _unit(features_nd: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features_nd, dim=-1)
