"""How good answers are: accuracy, exact match, BLEU, each with a bootstrap interval.

n questions, b resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from models.comparison import Measured

RESAMPLES = 1000
LOW, HIGH = 2.5, 97.5

Picked = NDArray[np.int64]


def measure(
    metric: str, *, answers: Sequence[str], references: Sequence[Sequence[str]], seed: int
) -> Measured:
    """Return a metric over all answers and its 95 % percentile interval over resampled questions.

    Accuracy and exact match are shares from 0 to 1; BLEU goes to 100.
    """
    value_of = _bleu(answers, references) if metric == "bleu" else _share(answers, references)
    n = len(answers)
    random = np.random.default_rng(seed)
    # One at a time: together, those of many questions would be most of a gigabyte.
    values_b = np.array([value_of(random.integers(n, size=n)) for _ in range(RESAMPLES)])
    low, high = np.percentile(values_b, [LOW, HIGH])
    return Measured(value_of(np.arange(n)), float(low), float(high))


def _share(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> Callable[[Picked], float]:
    """Return a function from picked questions to the share that was answered word for word."""
    right_n = np.array(
        [
            answer.strip() in {reference.strip() for reference in those}
            for answer, those in zip(answers, references, strict=True)
        ]
    )
    return lambda picked: float(right_n[picked].mean())


def _bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Callable[[Picked], float]:
    """Return a function from picked questions to corpus BLEU, as sacrebleu computes it.

    Its counts add up over sentences, so each sentence is counted once.
    """
    scorer = BLEU(effective_order=True)
    scores = [
        scorer.sentence_score(answer.strip(), [reference.strip() for reference in those])
        for answer, those in zip(answers, references, strict=True)
    ]
    correct_n4 = np.array([score.counts for score in scores])
    total_n4 = np.array([score.totals for score in scores])
    lengths_n2 = np.array([(score.sys_len, score.ref_len) for score in scores])

    def value_of(picked: Picked) -> float:
        said, wanted = lengths_n2[picked].sum(axis=0)
        return float(
            BLEU.compute_bleu(
                correct=correct_n4[picked].sum(axis=0).tolist(),
                total=total_n4[picked].sum(axis=0).tolist(),
                sys_len=int(said),
                ref_len=int(wanted),
                smooth_method="exp",
            ).score
        )

    return value_of
