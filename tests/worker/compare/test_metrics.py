"""Figures against values worked out by hand."""

import tracemalloc
from math import exp, log

import numpy as np
import pytest
import sacrebleu

from worker.compare.metrics import HIGH, LOW, RESAMPLES, measure

REFERENCES = [["the cat sat on the mat"], ["a dog barked"], ["rain fell all day long", "it rained"]]


def test_accuracy_is_the_share_of_right_labels() -> None:
    found = measure(
        "accuracy",
        answers=["good", " bad\n", "good", "good"],
        references=[["good"], ["bad"], ["bad"], ["good"]],
        seed=0,
    )
    assert found.value == 0.75
    assert 0.25 <= found.low < 0.75 < found.high == 1.0


def test_any_reference_is_an_exact_match_but_a_part_of_one_is_none() -> None:
    found = measure(
        "exact_match",
        answers=["the cat", "a dog barked", "it rained"],
        references=REFERENCES,
        seed=0,
    )
    assert found.value == pytest.approx(2 / 3)


def test_bleu_is_the_geometric_mean_of_precisions_times_the_brevity_penalty() -> None:
    found = measure(
        "bleu", answers=["the cat sat on the"], references=[["the cat sat on the mat"]], seed=0
    )
    assert found.value == pytest.approx(100 * exp(1 - 6 / 5))  # every n-gram right, a word short
    found = measure(
        "bleu", answers=["the cat lay on the mat"], references=[["the cat sat on the mat"]], seed=0
    )
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples; no four in a row counts as half a one of three
    expected = exp(sum(map(log, (5 / 6, 3 / 5, 1 / 4, 1 / 2 / 3))) / 4)
    assert found.value == pytest.approx(100 * expected)


def test_bleu_is_sacrebleus_with_as_many_references_as_there_are() -> None:
    answers = ["the cat sat on a mat", "a dog barked at it", "rain fell all the day"]
    longest = max(map(len, REFERENCES))
    streams = [
        [those[index] if index < len(those) else None for those in REFERENCES]
        for index in range(longest)
    ]
    expected = sacrebleu.corpus_bleu(answers, streams).score
    found = measure("bleu", answers=answers, references=REFERENCES, seed=0)
    assert found.value == pytest.approx(expected)
    assert 0 < found.low <= found.value <= found.high


def test_the_interval_is_that_of_a_mean() -> None:
    right = np.arange(400) % 4 != 0
    found = measure(
        "accuracy",
        answers=["a" if item else "b" for item in right],
        references=[["a"]] * 400,
        seed=1,
    )
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found.low == pytest.approx(0.75 - half, abs=0.006)
    assert found.high == pytest.approx(0.75 + half, abs=0.006)


def test_the_interval_of_many_questions_fits_into_memory() -> None:
    n = 5000
    tracemalloc.start()
    found = measure("accuracy", answers=["a"] * n, references=[["a"], ["b"]] * (n // 2), seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6  # one number a question and resample would be 40e6
    together = np.random.default_rng(1).integers(n, size=(RESAMPLES, n))
    expected = np.percentile((together % 2 == 0).mean(axis=1), [LOW, HIGH])
    assert (found.low, found.high) == tuple(expected)


def test_a_seed_gives_the_same_interval() -> None:
    answers = ["a", "b", "c", "d"]
    references = [["a"], ["b"], ["x"], ["y"]]
    first, again = (
        measure("accuracy", answers=answers, references=references, seed=3) for _ in range(2)
    )
    assert first == again
