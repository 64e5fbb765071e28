"""Hard prompts: a searched sequence of ordinary tokens that stands before every sequence.

`pez` trains rows P (p, d) that are replaced by the nearest tokens wherever they are read, and the
gradient is passed straight through (Wen et al., "Hard Prompts Made Easy", arXiv 2302.03668,
section 3). `autoprompt` swaps one position a step for one of the tokens w with the largest
-e_w.dL/de (Shin et al., arXiv 2010.15980, section 2.2); `gcg` tries random swaps among those of all
positions (Zou et al., arXiv 2307.15043, algorithm 1), here for the loss on labelled rows only: no
text can be set as a target. p tokens, d hidden, V vocabulary, A allowed tokens. Parameters: p d
with `pez`, otherwise none; what is served is p tokens. PEFT has no form for them, so they are
stored in ours: `ids` (p,), whole numbers.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field, PrivateAttr

from core.errors import Corrupt, InvalidRequest
from models.nn.methods.base import Method, Site
from models.nn.prompts import refuse_long
from models.nn.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem
else:
    torch = lazy_loader.load("torch")

IDS = "ids"
_PROMPT = "prompt"
_ALLOWED = "allowed"
_ROWS = "rows"
_CONTROL_TOKENS = 3


class HardPrompt(Method):
    """[w; x]: p tokens w before every sequence, searched by gradient among whole words."""

    sites: ClassVar[frozenset[Site]] = frozenset({"tokens", "embeddings"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt_length": 4},
        {"prompt_length": 3, "algorithm": "autoprompt", "steps": 2},
        {"prompt_length": 2, "algorithm": "gcg", "steps": 2, "candidates": 3},
    )
    learning_rate: ClassVar[float] = 1e-1

    kind: Literal["hard_prompt"] = Field("hard_prompt", alias="type")
    prompt_length: int = Field(8, ge=1, le=512, description="Tokens of the prompt.")
    algorithm: Literal["pez", "autoprompt", "gcg"] = Field(
        "pez",
        description="`pez` trains by gradient and projects onto tokens; `autoprompt` and `gcg` "
        "swap tokens and keep a swap that lowers the loss.",
    )
    steps: int = Field(
        40, ge=1, le=10000, description="Steps of `autoprompt` and `gcg`; `pez` follows n_epochs."
    )
    candidates: int = Field(
        8, ge=1, le=1024, description="Swaps that a step tries; each costs a pass over a batch."
    )
    top_k: int = Field(
        64, ge=1, le=4096, description="Tokens for each position that `gcg` draws swaps from."
    )
    allowed_words: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=50000,
        fail_fast=True,
        description="The words that the prompt may use, each one token; all whole words of the "
        "vocabulary if left out.",
    )
    _allowed_ids: tuple[int, ...] = PrivateAttr(default=())

    @property
    def starts_as_base(self) -> bool:
        """A prompt takes attention from the first step."""
        return False

    @property
    def search_steps(self) -> int:
        """The steps of a search; `pez` is trained like other methods."""
        return 0 if self.algorithm == "pez" else self.steps

    @property
    def rows_before(self) -> int:
        """The tokens of the prompt."""
        return self.prompt_length

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return P (p, d) or the ids (p,), and a mask of allowed tokens (V,)."""
        refuse_long(self.prompt_length, shape, param="prompt_length")
        named: dict[str, tuple[int, ...]] = {_ALLOWED: (shape.vocab,)}
        if self.algorithm == "pez":
            return named | {_PROMPT: (self.prompt_length, shape.hidden)}
        return named | self.served(shape)

    def is_trained(self, name: str) -> bool:
        """Say that P is trained; ids are searched, and the mask stays as it is."""
        return name == _PROMPT

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:  # noqa: ARG002
        """Find the allowed tokens: those of `allowed_words`, or all whole words."""
        if self.allowed_words is None:
            # A vocabulary of bytes has no words; its letters are read back too.
            found = list(_words(problem, apart=True)) or list(_words(problem, apart=False))
        else:
            found = [_id_of(word, problem) for word in self.allowed_words]
        if not found:
            raise InvalidRequest(
                "This base's vocabulary has neither whole words nor letters; name allowed_words.",
                code="invalid_value",
                param="peft.allowed_words",
            )
        adapted = self.model_copy()
        adapted._allowed_ids = tuple(sorted(set(found)))  # noqa: SLF001 - of our own kind
        return adapted

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw allowed tokens; before `adapt`, all but the first three ids are allowed."""
        vocab = base.shape.vocab
        ids_a = torch.tensor(self._allowed_ids or range(_CONTROL_TOKENS, vocab))
        picked_p = torch.randint(len(ids_a), (self.prompt_length,), generator=generator)
        ids_p = ids_a[picked_p]
        allowed = {_ALLOWED: torch.zeros(vocab).index_fill(0, ids_a, 1.0)}
        if self.algorithm == "pez":
            return {_PROMPT: base.embed(ids_p.to(base.device)).cpu()} | allowed
        return {IDS: ids_p.float()} | allowed

    def search(
        self, t: Mapping[str, Tensor], problem: Problem, *, step: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Try swaps that the gradient of one batch favours; keep the best if it lowers the loss."""
        base, ids = problem.base, [int(token) for token in t[IDS].tolist()]
        ids_p, ids_a = t[IDS].long().to(base.device), _allowed(t).to(base.device)
        rows_pd = base.embed(ids_p).requires_grad_()
        loss = problem.loss({_ROWS: rows_pd}, step=step)
        (gradient_pd,) = torch.autograd.grad(loss, rows_pd)
        score_pa = -gradient_pd @ base.embed(ids_a).T
        score_pa[ids_p[:, None] == ids_a] = -torch.inf
        best, lowest = ids, loss.item()
        with torch.no_grad():
            for swapped in self._swaps(ids, score_pa, ids_a, step=step, generator=generator):
                problem.check()
                if problem.encode(problem.decode(swapped)) != swapped:
                    continue
                tried = {**t, IDS: t[IDS].new_tensor(swapped)}
                if (reached := problem.loss(tried, step=step).item()) < lowest:
                    best, lowest = swapped, reached
        found = {**t, IDS: t[IDS].new_tensor(best)}
        return found, {"train_loss": lowest, "swapped": float(best != ids)}

    def tokens(self, t: Mapping[str, Tensor]) -> Tensor | None:
        """Return the ids, where they are not being trained as rows."""
        return t[IDS].round().long() if IDS in t else None

    def embeddings(self, t: Mapping[str, Tensor], base: Base) -> Tensor | None:
        """Return rows (p, d): the nearest tokens' embeddings, with the gradient of P."""
        if _ROWS in t:
            return t[_ROWS]
        if _PROMPT not in t:
            return None
        prompt_pd = t[_PROMPT]
        nearest_pd = base.embed(_nearest(prompt_pd, t, base)).to(prompt_pd.device)
        return nearest_pd + (prompt_pd - prompt_pd.detach())

    def served(self, shape: Shape) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        """Return the ids (p,) alone."""
        return {IDS: (self.prompt_length,)}

    def finish(self, t: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
        """Return the ids; of P, those of the nearest allowed tokens."""
        if IDS in t:
            return {IDS: t[IDS]}
        return {IDS: _nearest(t[_PROMPT].detach(), t, base).float().cpu()}

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """Refuse ids that the base's vocabulary does not have."""
        ids = t.get(IDS)
        if ids is not None and not bool(((ids == ids.round()) & (ids >= 0)).all()):
            raise Corrupt("Tensor 'ids' holds values that are no token ids.")
        if ids is not None and bool((ids >= shape.vocab).any()):
            raise Corrupt(f"Tensor 'ids' holds ids beyond the vocabulary of {shape.vocab} tokens.")
        return dict(t)

    def _swaps(
        self,
        ids: list[int],
        score_pa: Tensor,
        ids_a: Tensor,
        *,
        step: int,
        generator: torch.Generator,
    ) -> Iterator[list[int]]:
        """Give sequences that differ from `ids` in one token, distinct ones."""
        if self.algorithm == "autoprompt":
            position = step % len(ids)
            order = score_pa[position].topk(min(self.candidates, len(ids_a))).indices
            pairs = [(position, int(place)) for place in order.tolist()]
        else:
            top_pk = score_pa.topk(min(self.top_k, len(ids_a)), dim=1).indices
            drawn = torch.randperm(top_pk.numel(), generator=generator)[: self.candidates]
            width = top_pk.shape[1]
            pairs = [(i // width, int(top_pk[i // width, i % width])) for i in drawn.tolist()]
        for position, place in pairs:
            if ids[position] != (token := int(ids_a[place])):
                yield [*ids[:position], token, *ids[position + 1 :]]


def _allowed(t: Mapping[str, Tensor]) -> Tensor:
    """Return the allowed ids (A,) int64."""
    return t[_ALLOWED].nonzero().flatten()


def _nearest(prompt_pd: Tensor, t: Mapping[str, Tensor], base: Base) -> Tensor:
    """Return (p,) int64: the allowed tokens whose embeddings are nearest to rows (p, d)."""
    ids_a = _allowed(t).to(base.device)
    embedded_ad = base.embed(ids_a)
    similar_pa = prompt_pd.detach().to(base.device) @ embedded_ad.T
    # The squared distance without the part that is the same for all tokens.
    distance_pa = embedded_ad.square().sum(1) - 2 * similar_pa
    return ids_a[distance_pa.argmin(1)]


def _words(problem: Problem, *, apart: bool) -> Iterator[int]:
    """Give the tokens of letters any sequence of which is read back as it was."""
    for token in range(problem.base.shape.vocab):
        if token % 1000 == 0:
            problem.check()
        word = problem.decode([token]).strip()
        if word.isalpha() and _survives([token], word, problem, apart=apart):
            yield token


def _id_of(word: str, problem: Problem) -> int:
    """Return the token of a word, or say that it is not one.

    Better one that stands apart; digits, letters of a vocabulary of bytes and words of languages
    without spaces have none.
    """
    for apart, text in product((True, False), (f" {word.strip()}", word.strip())):
        ids = problem.encode(text)
        if len(ids) == 1 and _survives(ids, word.strip(), problem, apart=apart):
            return ids[0]
    raise InvalidRequest(
        f"allowed_words: {word!r} is not one token of this base; leave it out or write a shorter, "
        "more common word.",
        code="invalid_value",
        param="peft.allowed_words",
    )


def _survives(ids: list[int], word: str, problem: Problem, *, apart: bool) -> bool:
    """Say whether a token and its double, apart or not, are read back as they were."""
    doubled = problem.decode(ids * 2)
    return (
        doubled.split() == ([word, word] if apart else [word + word])
        and problem.encode(doubled) == ids * 2
        and problem.encode(problem.decode(ids)) == ids
    )
