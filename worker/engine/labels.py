"""Labels by a model that generates: how likely each is as the whole answer to a prompt.

Labels are scored as training would have labelled them, end of turn included, in one slot behind
one prompt (see `tree.py`).
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.errors import GraftworkError
from models.nn.chat import Example, Renderer
from models.nn.messages import Message
from models.wire import ClassifyReply, Input
from worker.engine.demonstrations import Demonstrations, Prompt, Shown, render, show
from worker.engine.reading import Reading, require_fit
from worker.engine.resident import Form
from worker.engine.sequence import Excerpt, Footing, Scored
from worker.engine.tree import Continuation, Tree

_SHORT: Sequence[Message] = ({"role": "user", "content": "probe"},)


class _Group(NamedTuple):
    """Labels that share a tree, and of each the scored tokens with the nodes they follow."""

    tree: Tree
    edges: dict[int, list[tuple[int, int]]]


@dataclass(eq=False, kw_only=True)
class Labelling:
    """Probabilities of given labels as answers."""

    reading: Reading
    renderer: Renderer
    footing: Footing
    context: int
    form: Form
    labels: list[str]
    demonstrations: Demonstrations | None
    tokens: dict[int, int] = field(default_factory=dict)
    totals: dict[int, dict[int, float]] = field(default_factory=dict)
    """Of each input, the summed logprob of each label."""
    _work: Generator[None, None, list[Excerpt]] | None = None
    """What is left to do for the input that is being rendered."""
    _edges: dict[Excerpt, dict[int, list[Scored]]] = field(default_factory=dict)
    _known: list[Continuation] = field(default_factory=list)
    """The labels as they follow a header of the chat template."""
    _whole: list[_Group] = field(default_factory=list)
    """The one tree of all known labels."""

    def excerpts(self, index: int, source: Input) -> list[Excerpt] | None:
        """See `Plan.excerpts`; labels that do not fit into one slot together get several."""
        self._work = self._work or self._render(index, source)
        try:
            next(self._work)
        except StopIteration as end:
            self._work = None
            rows: list[Excerpt] = end.value
            return rows
        return None

    def _render(self, index: int, source: Input) -> Generator[None, None, list[Excerpt]]:
        """Return the rows of an input; yields before each label that is to be tokenised."""
        asked = source if source.text is None else self.form.wrap(source.text)
        pairs = self.demonstrations.pairs(asked) if self.demonstrations else ()
        shown = show(asked, pairs, self.renderer)
        prompt = render(shown, self.renderer)
        taken = self.footing.rows + len(prompt.ids)
        require_fit(index, taken, context=self.context)
        yield
        continuations = yield from self._continue(shown, prompt)
        longest = max(map(len, continuations)) - 1
        require_fit(index, taken + longest, context=self.context)
        self.tokens[index] = len(prompt.ids)
        return [
            self._excerpt(index, prompt, group)
            for group in self._grow(continuations, room=self.context - taken)
        ]

    def close(self, excerpt: Excerpt) -> None:
        """See `Plan.close`."""
        found = dict(zip(excerpt.scored, excerpt.logprobs, strict=True))
        totals = self.totals.setdefault(excerpt.index, {})
        for label, edges in self._edges.pop(excerpt).items():
            totals[label] = sum(found[edge] for edge in edges)
            if not math.isfinite(totals[label]):
                raise GraftworkError(
                    "What was read of this request is not a number.", code="engine_fault"
                )

    def reply(self) -> ClassifyReply:
        """See `Plan.reply`."""
        places = range(len(self.reading.order.inputs))
        return ClassifyReply(
            labels=self.labels,
            scores=[_softmax(self.totals[index]) for index in places],
            tokens=[self.tokens[index] for index in places],
        )

    def _excerpt(self, index: int, prompt: Prompt, group: _Group) -> Excerpt:
        trunk = len(prompt.ids)
        edges = {
            label: [(trunk + node, token) for node, token in held]
            for label, held in group.edges.items()
        }
        excerpt = Excerpt(
            request=self.reading,
            index=index,
            prompt=prompt.ids + group.tree.tokens,
            footing=self.footing,
            tree=group.tree,
            scored=sorted({edge for held in edges.values() for edge in held}),
        )
        self._edges[excerpt] = edges
        return excerpt

    def _continue(
        self, shown: Shown, prompt: Prompt
    ) -> Generator[None, None, Sequence[Continuation]]:
        """Return every label's tokens behind a prompt.

        In a conversation they follow the template's header and depend on nothing before it; so the
        first label is rendered for each prompt, and the others behind a short one, or behind this
        one if the first came out differently there.
        """
        source = shown.source
        if source.messages is None:
            leads = ("" if label[:1].isspace() else self.form.lead for label in self.labels)
            answers = [lead + label for lead, label in zip(leads, self.labels, strict=True)]
            found = list[Continuation]()
            for ids in self.renderer.completions(source.text or "", answers):
                found.append([(token, True) for token in ids])
                yield
            return found
        first = self._in_chat(source.messages, self.labels[0], start=len(prompt.ids))
        if not self._known or self._known[0] != first:
            yield from self._learn(_SHORT, start=len(self.renderer.prompt(_SHORT)))
        if self._known[0] != first:
            yield from self._learn(source.messages, start=len(prompt.ids))
        return self._known

    def _learn(self, messages: Sequence[Message], *, start: int) -> Generator[None]:
        known = list[Continuation]()
        for label in self.labels:
            yield
            known.append(self._in_chat(messages, label, start=start))
        self._known, self._whole = known, []

    def _in_chat(
        self, messages: Sequence[Message], label: str, *, start: int
    ) -> list[tuple[int, bool]]:
        answer = {"role": "assistant", "content": label}
        example = self.renderer.example([*map(_unlearned, messages), answer])
        return _answer(example, start=start)

    def _grow(self, continuations: Sequence[Continuation], *, room: int) -> list[_Group]:
        """Return trees of at most `room` nodes; that of all known labels is made once."""
        if continuations is not self._known or room < sum(map(len, continuations)):
            return _grow(continuations, room=room)
        self._whole = self._whole or _grow(continuations, room=room)
        return self._whole


def _grow(continuations: Sequence[Continuation], *, room: int) -> list[_Group]:
    groups = [_Group(Tree(), {})]
    for label, continuation in enumerate(continuations):
        tree = groups[-1].tree
        if len(tree.tokens) + tree.lacks(continuation) > room:
            groups.append(_Group(Tree(), {}))
        groups[-1].edges[label] = groups[-1].tree.add(continuation)
    return groups


def _answer(example: Example, *, start: int) -> list[tuple[int, bool]]:
    """Return the tokens from `start` to the last labelled one."""
    stop = len(example.ids) - example.labelled[::-1].index(True)
    return list(zip(example.ids[start:stop], example.labelled[start:stop], strict=True))


def _unlearned(message: Message) -> Mapping[str, Any]:
    return {**message, "weight": 0} if message.get("role") == "assistant" else message


def _softmax(totals: Mapping[int, float]) -> list[float]:
    highest = max(totals.values())
    weights = [math.exp(totals[label] - highest) for label in range(len(totals))]
    return [weight / sum(weights) for weight in weights]
