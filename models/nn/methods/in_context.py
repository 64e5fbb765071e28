"""In-context learning: nothing is trained; solved examples are shown before every request.

Brown et al., "Language models are few-shot learners", arXiv 2005.14165. The k demonstrations are
rows of the training file, the same for all requests (their keys and values are computed once), or
chosen for each (Liu et al., "What makes good in-context examples for GPT-3?", arXiv 2101.06804):

- `random`: drawn by the seed. `balanced`: as many of each answer, as far as k allows.
- `bm25`, per request: the rows whose prompts score highest for the request's words (Robertson and
  Zaragoza 2009, the form of Lucene).
- `nearest`, per request: the rows whose prompts have the highest cosine with it, between the base's
  own pooled hidden states from which the pool's mean is taken.
- `bm25` and `nearest`, fixed: the rows that represent a drawn pool best. They are picked one by
  one, each raising most the sum, over the pool, of the similarity to the nearest picked (greedy
  facility location). A BM25 score counts relative to the score that a prompt has for itself.

The best stands last, next to the request. A row chosen for a request is never that request itself,
so that a measure on training rows does not see the answer.

Parameters: 0. Stored in our own form: the texts are in the configuration, and `pool_features`
(n, d), which is not trained, holds the pool's states for `nearest`.
Shapes: N rows, n rows of the pool, d hidden.
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from core.errors import InvalidRequest
from models.nn.methods.base import Method, Site
from models.nn.problem import Pair
from models.nn.shape import Shape
from models.nn.similarity import WordIndex, cosines, cover, word_similarities
from models.nn.terms import Pooling

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem, Query
else:
    torch = lazy_loader.load("torch")

POOL_FEATURES = "pool_features"
MOST_DEMONSTRATIONS = 64
LARGEST_POOL = 1024
CONTEXT_SHARE = 2
"""All demonstrations together take at most the base's context over this."""
_PER_REQUEST = ("bm25", "nearest")


class Demonstration(BaseModel):
    """A solved example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    answer: str


class InContext(Method):
    """Shows k solved rows of the training file before every request; trains nothing."""

    sites: ClassVar[frozenset[Site]] = frozenset({"demonstrations"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"k": 2, "selection": "random"},
        {"k": 2, "selection": "bm25", "scope": "per_request"},
        {"k": 2, "selection": "nearest", "scope": "per_request", "pooling": "last"},
        {"k": 1, "selection": "nearest"},
    )

    kind: Literal["in_context"] = Field("in_context", alias="type")
    k: int = Field(4, ge=1, le=MOST_DEMONSTRATIONS, description="Demonstrations in a prompt.")
    selection: Literal["random", "balanced", "bm25", "nearest"] = Field(
        "balanced",
        description="How rows are chosen: at random, as many of each answer, by the words they "
        "share, or by the base's hidden states.",
    )
    scope: Literal["fixed", "per_request"] = Field(
        "fixed",
        description="The same rows before every request, whose keys and values are kept, or rows "
        "chosen for each one (`bm25` and `nearest` only).",
    )
    pooling: Pooling = Field(
        "mean", description="`nearest`: the last hidden state of a prompt, or the mean of all."
    )
    pool_size: int = Field(
        256,
        ge=1,
        le=LARGEST_POOL,
        description="`bm25` and `nearest`: rows, drawn by the seed, from which to choose.",
    )
    max_characters: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Rows whose prompt and answer together are longer are not shown. Nor are rows "
        "of which k would take more than half of the base's context.",
    )
    chosen: tuple[Demonstration, ...] = Field(
        (),
        max_length=MOST_DEMONSTRATIONS,
        fail_fast=True,
        description="The demonstrations of the scope `fixed`; the job fills this in.",
        json_schema_extra={"readOnly": True},
    )
    pool: tuple[Demonstration, ...] = Field(
        (),
        max_length=LARGEST_POOL,
        fail_fast=True,
        description="The rows to choose from in the scope `per_request`; the job fills this in.",
        json_schema_extra={"readOnly": True},
    )

    @field_validator("scope")
    @classmethod
    def _can_choose_again(cls, scope: str, info: ValidationInfo) -> str:
        if scope == "per_request" and info.data.get("selection") not in _PER_REQUEST:
            raise ValueError(f"`per_request` needs a selection of {' or '.join(_PER_REQUEST)}")
        return scope

    @field_validator("chosen", "pool")
    @classmethod
    def _are_short(
        cls, rows: tuple[Demonstration, ...], info: ValidationInfo
    ) -> tuple[Demonstration, ...]:
        most = info.data.get("max_characters", 0)
        if any(len(row.prompt) + len(row.answer) > most for row in rows):
            raise ValueError("a row has more than `max_characters` characters")
        return rows

    @property
    def starts_as_base(self) -> bool:
        """What is shown changes the answers."""
        return False

    @property
    def search_steps(self) -> int:
        """One: the states of the pool, where they are needed."""
        return 1

    @cached_property
    def _word_index(self) -> WordIndex:
        return WordIndex([row.prompt for row in self.pool])

    # --- what the data decide ----------------------------------------------------------------

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:
        """Choose the demonstrations, or the pool; those of the adapter to go on from stay."""
        if self.chosen or self.pool:
            return self
        order = torch.randperm(len(problem.pairs), generator=generator).tolist()
        if self.selection == "balanced":
            order = _in_turn(order, problem.pairs)
        usable = self._usable(problem, order)
        count = self.pool_size if self.selection in _PER_REQUEST else self.k
        rows = tuple(islice(usable, count))
        if not rows:
            raise InvalidRequest(
                f"No row of the training file has at most {self.max_characters} characters and a "
                f"part in {self.k} of half the base's context; raise `max_characters`, lower `k`, "
                "or add shorter rows.",
                code="no_demonstrations",
                param="training_file",
            )
        if self.scope == "per_request":
            return self._with(pool=rows)
        if self.selection in _PER_REQUEST:
            rows = self._most_central(rows, problem)
        return self._with(chosen=rows)

    def _with(self, **values: tuple[Demonstration, ...]) -> Self:
        return type(self).model_validate(self.model_dump() | values)

    def _usable(self, problem: Problem, order: Iterable[int]) -> Iterator[Demonstration]:
        """Go through rows that are short enough, no prompt twice."""
        most_tokens = problem.base.shape.context // CONTEXT_SHARE // self.k
        pairs, seen = problem.pairs, set[str]()
        for prompt, answer in (pairs[row] for row in order):
            problem.check()
            if prompt in seen or len(prompt) + len(answer) > self.max_characters:
                continue
            if len(problem.encode(f"{prompt}\n{answer}")) <= most_tokens:
                seen.add(prompt)
                yield Demonstration(prompt=prompt, answer=answer)

    def _most_central(
        self, rows: Sequence[Demonstration], problem: Problem
    ) -> tuple[Demonstration, ...]:
        """Return the k rows that represent all best, the first found last."""
        prompts = [row.prompt for row in rows]
        if self.selection == "nearest":
            features_nd = problem.text_features(prompts, self.pooling).cpu().float()
            similarity_nn = cosines(features_nd, features_nd)
        else:
            similarity_nn = word_similarities(prompts)
        found = cover(similarity_nn, self.k)
        return tuple(rows[row] for row in reversed(found))

    # --- tensors -----------------------------------------------------------------------------

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the states of the pool (n, d), where requests are compared with them."""
        if self.selection == "nearest" and self.scope == "per_request":
            return {POOL_FEATURES: (len(self.pool), shape.hidden)}
        return {}

    def is_trained(self, name: str) -> bool:  # noqa: ARG002
        """Nothing is."""
        return False

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        """Return zeros, which the only step replaces."""
        return {name: torch.zeros(size) for name, size in self.tensors(base.shape).items()}

    def search(
        self,
        t: Mapping[str, Tensor],
        problem: Problem,
        *,
        step: int,  # noqa: ARG002 - there is one
        generator: torch.Generator,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Compute the states of the pool."""
        if POOL_FEATURES not in t:
            return dict(t), {}
        prompts = [row.prompt for row in self.pool]
        return {POOL_FEATURES: problem.text_features(prompts, self.pooling).cpu().float()}, {}

    # --- sites -------------------------------------------------------------------------------

    def demonstrations(self, t: Mapping[str, Tensor], query: Query | None) -> Sequence[Pair]:
        """Return the chosen rows, or those of the pool that suit the query, the best last."""
        if self.scope == "fixed":
            return [Pair(row.prompt, row.answer) for row in self.chosen]
        if query is None or not self.pool:
            return ()
        if self.selection == "bm25":
            scores_n = self._word_index.scores(query.text)
        else:
            scores_n = cosines(t[POOL_FEATURES], query.features(self.pooling)[None])[0]
        best = torch.argsort(scores_n, descending=True, stable=True).tolist()
        rows = (self.pool[row] for row in best if self.pool[row].prompt != query.text)
        shown = list(islice(rows, self.k))
        return [Pair(row.prompt, row.answer) for row in reversed(shown)]


def _in_turn(order: Sequence[int], pairs: Sequence[Pair]) -> list[int]:
    """Return rows so that answers alternate for as long as each has rows."""
    turns: dict[str, int] = {}
    place = {}
    for row in order:
        answer = pairs[row].label
        place[row] = turns[answer] = turns.get(answer, 0) + 1
    return sorted(order, key=place.__getitem__)
