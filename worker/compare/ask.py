"""Puts questions to one model, base or adapter, and times a fixed batch of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from models.spec import AdapterRef, ClassifyRequest, GenerateRequest, SamplingSpec
from worker.compare.engine import Engine, EngineRefused
from worker.compare.questions import Question, Questions

AT_ONCE = 16
CLASSIFY_ROWS = 16
TIMED_ANSWERS, TIMED_TOKENS, TIMED_INPUTS, ROUNDS = 8, 32, 32, 3
LETTERS_PER_TOKEN, SPARE_TOKENS, MOST_TOKENS = 3, 16, 256


class Asked:
    """One model that can be asked, in the way that suits it.

    A classifier answers with one of its own labels. What generates text is held to the labels of
    the question, if there are any, and answers freely, always with the likeliest token, if not.
    """

    def __init__(self, engine: Engine, questions: Questions, *, adapter: AdapterRef | None) -> None:
        self._engine = engine
        self._questions = questions
        self._adapter = adapter
        self._most_tokens = longest_answer(questions.items)
        self._labels = questions.labels or None
        self.generates = not questions.labels
        self._find_way()

    def answers(self) -> list[str]:
        """Return what the model says to each question."""
        items = self._questions.items
        with ThreadPoolExecutor(AT_ONCE) as pool:
            if self.generates:
                return list(pool.map(self._say, items))
        groups = [
            items[start : start + CLASSIFY_ROWS] for start in range(0, len(items), CLASSIFY_ROWS)
        ]
        return [answer for group in groups for answer in self._label(group)]

    def batch(self) -> Callable[[], object]:
        """Return the fixed piece of work by which the cost of serving is measured."""
        if not self.generates:
            inputs = list(islice(cycle(self._questions.items), TIMED_INPUTS))
            return lambda: self._label(inputs)
        items = list(islice(cycle(self._questions.items), TIMED_ANSWERS))

        def generate() -> None:
            with ThreadPoolExecutor(TIMED_ANSWERS) as pool:
                list(pool.map(self._say_long, items))

        return generate

    def _find_way(self) -> None:
        """Learn by one question whether the model is a classifier, which has its own labels."""
        first = self._questions.items[0]
        try:
            if self.generates:
                self._say(first, most=1)
            else:
                self._label([first])
        except EngineRefused as refusal:
            if self._adapter is None:
                raise
            self.generates, self._labels = False, None
            try:
                self._label([first])
            except EngineRefused:
                raise refusal from None

    def _say(self, question: Question, *, most: int | None = None) -> str:
        sampling = SamplingSpec(max_tokens=most or self._most_tokens, temperature=0.0)
        return self._generate(question, sampling)

    def _say_long(self, question: Question) -> str:
        sampling = SamplingSpec(max_tokens=TIMED_TOKENS, temperature=0.0, ignore_eos=True)
        return self._generate(question, sampling)

    def _generate(self, question: Question, sampling: SamplingSpec) -> str:
        return self._engine.generate(
            GenerateRequest(
                sampling=sampling.model_dump(),
                adapter=self._adapter,
                messages=question.messages,
                prompt=question.text,
            )
        )

    def _label(self, questions: Sequence[Question]) -> list[str]:
        reply = self._engine.classify(
            ClassifyRequest(
                inputs=[question.input for question in questions],
                adapter=self._adapter,
                labels=self._labels,
            )
        )
        return [reply.labels[max(range(len(row)), key=row.__getitem__)] for row in reply.scores]


def longest_answer(questions: Sequence[Question]) -> int:
    """Return how many tokens an answer may have: room for the longest that is right."""
    letters = max(len(text) for question in questions for text in question.references)
    return min(letters // LETTERS_PER_TOKEN + SPARE_TOKENS, MOST_TOKENS)


def overhead(model: Asked, *, base: Asked) -> float | None:
    """Return the time of a batch under an adapter over that of the base, the median of a few.

    Both are measured in turns, so that other work on the machine meets both. None where they do
    not do the same: a classifier beside a base that writes text.
    """
    if model.generates != base.generates:
        return None
    work, reference = model.batch(), base.batch()
    work()  # the first one loads the adapter
    ratios = []
    for _ in range(ROUNDS):
        theirs = _seconds(reference)
        ratios.append(_seconds(work) / theirs)
    return statistics.median(ratios)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
