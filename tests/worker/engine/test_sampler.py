"""Draws and logprobs, against plain softmax."""

import math

import pytest
import torch

from worker.engine.draw import CANDIDATES, draw_nucleus, draw_whole, weigh
from worker.engine.sampler import Asked, Draw, sample, score

VOCAB = 1000


def logits(rows: int, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def draw(temperature: float = 1.0, top_p: float = 1.0, uniform: float = 0.5, **more) -> Draw:
    return Draw(temperature=temperature, top_p=top_p, uniform=uniform, **more)


def test_greedy_takes_the_likeliest() -> None:
    table = logits(3)
    assert [d.token for d in sample(table.clone(), draws=[draw(0)] * 3)] == table.argmax(
        -1
    ).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_whole_distribution_is_drawn_from(temperature: float) -> None:
    table = logits(1)
    uniforms = torch.linspace(0, 0.9999, 4000).tolist()
    drawn = sample(
        table.expand(4000, -1).clone(), draws=[draw(temperature, uniform=u) for u in uniforms]
    )
    counts = torch.bincount(torch.tensor([d.token for d in drawn]), minlength=VOCAB) / 4000
    expected = (table[0] / temperature).softmax(-1)
    assert float((counts - expected).abs().max()) < 1e-3


@pytest.mark.parametrize(("scale", "top_p"), [(3.0, 0.9), (0.1, 0.7), (3.0, 0.01), (0.1, 0.999)])
def test_the_nucleus_is_exact(scale: float, top_p: float) -> None:
    """With a scale of 0.1 it is wider than the first cut."""
    table = logits(1, scale=scale)
    weight, ids = table[0].double().softmax(-1).sort(descending=True)
    size = int((weight.cumsum(-1) - weight < top_p).sum())
    assert (size > CANDIDATES) == (scale < 1)
    uniforms = torch.linspace(0, 0.99999, 3000).tolist()
    drawn = sample(
        table.expand(3000, -1).clone(), draws=[draw(top_p=top_p, uniform=u) for u in uniforms]
    )
    tokens = {d.token for d in drawn}
    assert tokens <= set(ids[: size + 1].tolist())
    assert len(tokens) >= min(size, 300) * 0.9


def test_a_wide_nucleus_is_drawn_from_as_it_is_weighted() -> None:
    table = logits(1, scale=0.3)
    weight, ids = table[0].double().softmax(-1).sort(descending=True)
    inside = ids[weight.cumsum(-1) - weight < 0.8]
    uniforms = torch.linspace(0, 0.9999, 4000)
    many = table.expand(len(uniforms), -1)
    tokens = draw_nucleus(
        weigh(many, torch.ones(len(many))), torch.full_like(uniforms, 0.8), uniforms
    )
    counts = torch.bincount(tokens, minlength=VOCAB).double() / len(uniforms)
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    expected[inside] = table[0].double().softmax(-1)[inside]
    assert float((counts - expected / expected.sum()).abs().max()) < 1e-3


@pytest.mark.parametrize("top_p", [0.25, 0.2501, 0.9999])
def test_of_equal_tokens_as_many_are_inside_as_are_needed(top_p: float) -> None:
    table = torch.zeros(1, VOCAB)
    uniforms = torch.linspace(0, 0.9999, 4000)
    weights = weigh(table.expand(len(uniforms), -1), torch.ones(len(uniforms)))
    tokens = set(draw_nucleus(weights, torch.full_like(uniforms, top_p), uniforms).tolist())
    assert tokens == set(range(math.ceil(round(top_p * VOCAB, 2))))


def test_only_tokens_of_some_weight_are_drawn() -> None:
    """The very last number below 1, beside weights of zero before and behind."""
    table = torch.full((2, VOCAB), float("-inf"))
    table[:, [70, 500, 501]] = 0.0
    weights = weigh(table, torch.full((2,), 0.5))
    for last in (
        draw_whole(weights, torch.tensor([0.0, 1 - 2**-24])),
        draw_nucleus(weights, torch.tensor([0.99, 0.99]), torch.tensor([0.0, 1 - 2**-24])),
    ):
        assert set(last.tolist()) <= {70, 500, 501}


def test_kinds_of_rows_mix_and_do_not_see_each_other() -> None:
    table = logits(6)
    draws = [
        draw(0),
        draw(0.7, uniform=0.3),
        draw(1.3, 0.8, uniform=0.9, top_logprobs=3),
        draw(1.0, 0.5, uniform=0.1),
        draw(0, top_logprobs=0),
        draw(1.0, uniform=0.99),
    ]
    together = sample(table.clone(), draws=draws)
    alone = [sample(table[i : i + 1].clone(), draws=[draws[i]])[0] for i in range(6)]
    assert [d.token for d in together] == [d.token for d in alone]
    assert together[2].logprob == pytest.approx(alone[2].logprob)


def test_logprobs_are_of_the_untempered_and_unbanned_distribution() -> None:
    table = logits(2)
    expected = table.log_softmax(-1)
    best = int(table[1].argmax())
    draws = [
        draw(0.3, 0.5, uniform=0.4, top_logprobs=4),
        draw(0, top_logprobs=2, banned=(best,)),
    ]
    first, second = sample(table.clone(), draws=draws)
    assert first.logprob == pytest.approx(float(expected[0, first.token]), abs=1e-5)
    assert [token for token, _ in first.top] == table[0].topk(4).indices.tolist()
    assert [p for _, p in first.top] == pytest.approx(expected[0].topk(4).values.tolist(), abs=1e-5)
    assert second.token == int(table[1].topk(2).indices[1])
    assert second.top[0][0] == best
    assert len(second.top) == 2


def test_given_tokens_are_scored() -> None:
    table = logits(3)
    table[2, 3] = torch.nan
    asked = [Asked(0, 5, 1), Asked(1, 6, 2), Asked(1, 7), Asked(2, 7)]
    scored = score(table, asked=asked)
    expected = table.log_softmax(-1)
    assert [d.token for d in scored] == [5, 6, 7, 7]
    assert [d.logprob for d in scored[:3]] == pytest.approx(
        [float(expected[row, token]) for row, token in ((0, 5), (1, 6), (1, 7))], abs=1e-5
    )
    assert scored[0].top[0][0] == int(table[0].argmax())
    assert [token for token, _ in scored[1].top] == table[1].topk(2).indices.tolist()
    assert scored[2].top == ()
    assert [d.finite for d in scored] == [True, True, True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_numbers_are_marked_alone(bad: float) -> None:
    table = logits(3)
    table[1, 7] = bad
    for one in (draw(0), draw(1.0), draw(1.0, 0.9)):
        assert [d.finite for d in sample(table.clone(), draws=[one] * 3)] == [True, False, True]


def test_banned_tokens_are_never_drawn() -> None:
    table = logits(1, scale=0.0)
    uniforms = torch.linspace(0, 1 - 2**-24, 500).tolist()
    draws = [draw(uniform=u, banned=tuple(range(VOCAB - 1))) for u in uniforms]
    assert {d.token for d in sample(table.expand(500, -1).clone(), draws=draws)} == {VOCAB - 1}


@pytest.mark.parametrize("width", [512, 500])
def test_the_likeliest_is_the_first_of_the_largest(width: int) -> None:
    """Whether rows are looked through by blocks or not; NaN counts as the largest, as in argmax."""
    logits_nv = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    logits_nv[1] = 0.0
    logits_nv[2, [300, 301, 490]] = 9.0
    logits_nv[3, 400] = float("nan")
    expected: list[int] = logits_nv.argmax(-1).tolist()
    found = sample(logits_nv, draws=[Draw(temperature=0, top_p=1, uniform=0.5)] * 40)
    assert [one.token for one in found] == expected
    assert [row for row, one in enumerate(found) if not one.finite] == [3]
