"""Puts questions to one model, base or adapter, and times a fixed batch of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from models.spec import SamplingSpec
from models.wire import AdapterRef, ClassifyRequest, GenerateRequest
from worker.compare.engine_client import EngineClient, EngineRefused
from worker.compare.questions import Question, Questions

AT_ONCE = 16
CLASSIFY_ROWS = 16
TIMED_ANSWERS, TIMED_TOKENS, TIMED_INPUTS, ROUNDS = 8, 32, 32, 3
SPARE_TOKENS, MOST_TOKENS = 16, 2048

CLASSIFIERS_ONLY = ("labels_not_allowed", "not_generative")
"""What the engine says to who takes a classifier for something else."""
TOO_LONG, UNANSWERED = "context_length_exceeded", ""
"""A question that does not fit is one that the model got wrong."""


class Asked:
    """One model that can be asked, in the way that suits it.

    A classifier answers with one of its own labels. What generates text is held to the labels of
    the question, if there are any, and answers freely, always with the likeliest token, if not.
    """

    def __init__(
        self, engine: EngineClient, questions: Questions, *, adapter: AdapterRef | None
    ) -> None:
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
                return list(pool.map(self._say_if_it_fits, items))
        groups = [
            items[start : start + CLASSIFY_ROWS] for start in range(0, len(items), CLASSIFY_ROWS)
        ]
        return [answer for group in groups for answer in self._label_what_fits(group)]

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
        for question in self._questions.items:
            try:
                if self.generates:
                    self._say(question, most=1)
                else:
                    self._label([question])
            except EngineRefused as refusal:
                if refusal.code in CLASSIFIERS_ONLY:
                    self.generates, self._labels = False, None
                elif refusal.code == TOO_LONG:
                    continue
                else:
                    raise
            return
        raise EngineRefused("No question fits into the model's context.", code=TOO_LONG)

    def _say(self, question: Question, *, most: int | None) -> str:
        return self._generate(question, SamplingSpec(max_tokens=most, temperature=0.0))

    def _say_if_it_fits(self, question: Question) -> str:
        for most in (self._most_tokens, None):  # None: as much as the context has room for
            try:
                return self._say(question, most=most)
            except EngineRefused as refusal:
                if refusal.code != TOO_LONG:
                    raise
        return UNANSWERED

    def _label_what_fits(self, questions: Sequence[Question]) -> list[str]:
        try:
            return self._label(questions)
        except EngineRefused as refusal:
            if refusal.code != TOO_LONG:
                raise
            if len(questions) == 1:
                return [UNANSWERED]
            return [answer for one in questions for answer in self._label_what_fits([one])]

    def _say_long(self, question: Question) -> str:
        sampling = SamplingSpec(max_tokens=TIMED_TOKENS, temperature=0.0, ignore_eos=True)
        return self._generate(question, sampling)

    def _generate(self, question: Question, sampling: SamplingSpec) -> str:
        return self._engine.generate(
            GenerateRequest(
                sampling=sampling.model_dump(),
                adapter=self._adapter,
                stream=False,
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
    """Return how many tokens an answer may have: room for the longest that is right.

    A token is a byte at least; in digits, or in letters that a tokenizer hardly knows, it is
    not much more.
    """
    references = (text for question in questions for text in question.references)
    longest = max(len(text.encode()) for text in references)
    return min(longest + SPARE_TOKENS, MOST_TOKENS)


def overhead(model: Asked, *, base: Asked) -> float | None:
    """Return the time of a batch under an adapter over that of the base, the median of a few.

    Both are measured in turns, so that other work on the machine meets both. None where they do
    not do the same, as a classifier beside a base that writes text, and where the batch of one
    of them does not fit into its context.
    """
    if model.generates != base.generates:
        return None
    work, reference = model.batch(), base.batch()
    ratios = []
    try:
        work()  # the first one loads the adapter
        for _ in range(ROUNDS):
            theirs = _seconds(reference)
            ratios.append(_seconds(work) / theirs)
    except EngineRefused as refusal:
        if refusal.code != TOO_LONG:
            raise
        return None
    return statistics.median(ratios)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
