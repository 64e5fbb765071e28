"""From logits to tokens, for all rows of a step at once.

Shapes: n rows, v vocabulary, m of the n rows or tokens asked for, k candidates, r rows scored.
Each row brings its own uniform number, so what it draws depends on its logits and its seed, not
on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.nn.kernels.native import draw as drawing
from worker.engine.draw import draw_nucleus, draw_whole, weigh

_BLOCK = 256
_MOST_REPORTED = 20
"""As many alternatives as a request may ask for are looked for, whatever it asks for: which of
equal ones are found depends on how many are."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row wants of its next token."""

    temperature: float
    top_p: float
    uniform: float
    top_logprobs: int | None = None
    """How many alternatives to report; None reports no logprob at all."""
    banned: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the largest logit decides: nothing else has a chance, or is in the nucleus."""
        return self.temperature <= 0 or self.top_p <= 0

    @property
    def takes_likeliest(self) -> bool:
        """Whether the largest logit decides, unless it is banned, and nothing is said of any."""
        return self.greedy and self.top_logprobs is None


LIKELIEST = Draw(temperature=0.0, top_p=1.0, uniform=0.0)
"""The largest logit decides, and nothing else is to be said of any."""


class Drawn(NamedTuple):
    """A token, its logprob before temperature and top-p, and the likeliest in its place."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finite: bool = True
    """Whether the row's logits were numbers at all; if not, the token means nothing."""


NO_NUMBER = Drawn(0, finite=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A token whose logprob is wanted, the row of logits it follows, and how many others too."""

    row: int
    token: int
    top: int = 0


def sample(logits_nv: Tensor, *, draws: Sequence[Draw]) -> list[Drawn]:
    """Draw one token a row from float32 logits, which banned tokens are removed from in place.

    Greedy at temperature or `top_p` 0; else from the softmax at that temperature, cut to the
    smallest set of likeliest tokens with mass `top_p`.
    """
    reported = [row for row, draw in enumerate(draws) if draw.top_logprobs is not None]
    report = _Report(logits_nv, rows=reported, draws=draws) if reported else None
    found = _choose(logits_nv, draws)
    tokens = [max(token, 0) for token in found]
    logprobs = report.of(tokens) if report else {}
    drawn = []
    for row, token in enumerate(tokens):
        logprob, top = logprobs.get(row, (None, ()))
        drawn.append(Drawn(token, logprob, top, finite=found[row] >= 0))
    return drawn


def likeliest(logits_nv: Tensor) -> list[int]:
    """Return the first token of the largest logit of each row, -1 where not all are numbers."""
    finite_n = torch.isfinite(logits_nv.sum(-1))
    tokens: list[int] = torch.where(finite_n, _likeliest(logits_nv), -1).tolist()
    return tokens


def score(logits_rv: Tensor, *, asked: Sequence[Asked]) -> list[Drawn]:
    """Report given tokens as if they had been drawn from float32 logits, several a row if asked."""
    rows = [one.row for one in asked]
    total_r = _total(logits_rv)
    finite = torch.isfinite(total_r).tolist()
    chosen_m = logits_rv[rows, [one.token for one in asked]] - total_r[rows]
    top_rk, ids_rk = _likeliest_of(logits_rv, [one.top for one in asked])
    ids, tops = ids_rk.tolist(), (top_rk - total_r[:, None]).tolist()
    return [
        Drawn(
            one.token,
            logprob,
            tuple(zip(ids[one.row][: one.top], tops[one.row][: one.top], strict=True)),
            finite[one.row],
        )
        for one, logprob in zip(asked, chosen_m.tolist(), strict=True)
    ]


class _Report:
    """Logprobs of some rows, taken before any logit is banned."""

    def __init__(self, logits_nv: Tensor, *, rows: Sequence[int], draws: Sequence[Draw]) -> None:
        self._rows = rows
        self._counts = [draws[row].top_logprobs or 0 for row in rows]
        self._logits_mv = _pick(logits_nv, rows).clone()
        self._total_m = _total(self._logits_mv)
        top_mk, self._ids_mk = _likeliest_of(self._logits_mv, self._counts)
        self._top_mk = top_mk - self._total_m[:, None]

    def of(self, tokens: Sequence[int]) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
        """Return, by row, the chosen token's logprob and the likeliest tokens with theirs."""
        places = [tokens[row] for row in self._rows]
        chosen = (self._logits_mv[range(len(places)), places] - self._total_m).tolist()
        ids, tops = self._ids_mk.tolist(), self._top_mk.tolist()
        return {
            row: (chosen[i], tuple(zip(ids[i][:count], tops[i][:count], strict=True)))
            for i, (row, count) in enumerate(zip(self._rows, self._counts, strict=True))
        }


def _likeliest_of(logits_nv: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the largest logits (n, k) of each row, in order, and their tokens."""
    width = max(_MOST_REPORTED, *counts) if any(counts) else 0
    top_nk, ids_nk = logits_nv.topk(min(width, logits_nv.shape[-1]), dim=-1)
    return top_nk, ids_nk


def _total(logits_nv: Tensor) -> Tensor:
    """Return (n,): the logarithm of the sum of exponentials of each row.

    In two stages, for torch would share a long row among threads where it has few of them, and sum
    it otherwise than among many.
    """
    whole_nv = F.pad(logits_nv, (0, -logits_nv.shape[-1] % _BLOCK), value=-torch.inf)
    return whole_nv.view(len(logits_nv), -1, _BLOCK).logsumexp(-1).logsumexp(-1)


def _choose(logits_nv: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Return a token of each row, -1 where not all logits are finite."""
    if drawing.takes(logits_nv):
        _ban(logits_nv, draws)
        wants = [(0 if one.greedy else one.temperature, one.top_p, one.uniform) for one in draws]
        return drawing.draw(logits_nv, wants)
    finite_n = torch.isfinite(logits_nv.sum(-1))
    _ban(logits_nv, draws)
    tokens: list[int] = torch.where(finite_n, _draw(logits_nv, draws), -1).tolist()
    return tokens


def _ban(logits_nv: Tensor, draws: Sequence[Draw]) -> None:
    """Let tokens weigh nothing, whose logits stay numbers."""
    banned = [(row, token) for row, draw in enumerate(draws) for token in draw.banned]
    if banned:
        rows, tokens = zip(*banned, strict=True)
        logits_nv[list(rows), list(tokens)] = torch.finfo(logits_nv.dtype).min


def _draw(logits_nv: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Return (n,) int64."""
    random = [row for row, draw in enumerate(draws) if not draw.greedy]
    if not random:
        return _likeliest(logits_nv)
    chosen_n = torch.empty(len(draws), dtype=torch.int64, device=logits_nv.device)
    if len(random) < len(draws):
        greedy = [row for row, draw in enumerate(draws) if draw.greedy]
        chosen_n[greedy] = _likeliest(logits_nv[greedy])
    wanted = [(draws[row].temperature, draws[row].top_p, draws[row].uniform) for row in random]
    temperature_m, top_p_m, uniform_m = torch.tensor(wanted, device=logits_nv.device).unbind(1)
    weight_mv = weigh(_pick(logits_nv, random), temperature_m)
    nucleus = [place for place, (_, top_p, _) in enumerate(wanted) if top_p < 1]
    if not nucleus:
        chosen_n[random] = draw_whole(weight_mv, uniform_m)
    elif len(nucleus) == len(random):
        chosen_n[random] = draw_nucleus(weight_mv, top_p_m, uniform_m)
    else:
        drawn_m = draw_whole(weight_mv, uniform_m)
        narrow_wv = weight_mv[nucleus]
        drawn_m[nucleus] = draw_nucleus(narrow_wv, top_p_m[nucleus], uniform_m[nucleus])
        chosen_n[random] = drawn_m
    return chosen_n


def _likeliest(logits_nv: Tensor) -> Tensor:
    """Return the first of the largest of each row, as `argmax` does, whose pass is a slow one."""
    rows, width = logits_nv.shape
    if width % _BLOCK:
        return logits_nv.argmax(-1)
    blocks_nbk = logits_nv.view(rows, -1, _BLOCK)
    block_n = blocks_nbk.amax(-1).argmax(-1)
    within_n = blocks_nbk[torch.arange(rows, device=logits_nv.device), block_n].argmax(-1)
    return block_n * _BLOCK + within_n


def _pick(logits_nv: Tensor, rows: Sequence[int]) -> Tensor:
    return logits_nv if len(rows) == len(logits_nv) else logits_nv[list(rows)]
