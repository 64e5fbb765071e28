"""Draws and logprobs, against plain softmax."""

import math

import pytest
import torch

from models.nn.kernels.native import Library, library, reason
from models.nn.kernels.native import draw as drawing
from worker.engine.draw import CANDIDATES
from worker.engine.sampler import Asked, Draw, sample, score

VOCAB = 1000
found = library()
NATIVE = pytest.mark.skipif(found is None, reason=reason())


@pytest.fixture(
    autouse=True,
    params=["torch", pytest.param("C++", marks=NATIVE), pytest.param("C++, AVX2", marks=NATIVE)],
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What draws: torch everywhere; C++ where it runs, by the best form or by the least."""
    if request.param == "torch":
        monkeypatch.setattr(drawing, "takes", lambda _: False)
    if request.param == "C++, AVX2" and found is not None:
        monkeypatch.setattr(drawing, "find", lambda: Library(found.handle, forms=["avx2"]))
    return str(request.param)


def logits(rows: int, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def draw(temperature: float = 1.0, top_p: float = 1.0, uniform: float = 0.5, **more) -> Draw:
    return Draw(temperature=temperature, top_p=top_p, uniform=uniform, **more)


def test_greedy_takes_the_likeliest() -> None:
    table = logits(3)
    assert [d.token for d in sample(table.clone(), draws=[draw(0)] * 3)] == table.argmax(
        -1
    ).tolist()


def test_a_nucleus_of_no_mass_is_the_likeliest_alone() -> None:
    """Beside rows that are drawn, and where another weighs as much once it is rounded."""
    table = logits(4)
    table[0] = 0
    table[0, 7] = 1e-8
    draws = [draw(2.0, 0.0), draw(1.0, 0.0, uniform=0.99), draw(1.0, 0.0, uniform=0.0), draw()]
    alone = sample(table[3:].clone(), draws=draws[3:])
    drawn = sample(table.clone(), draws=draws)
    assert [d.token for d in drawn[:3]] == table[:3].argmax(-1).tolist()
    assert drawn[3] == alone[0]


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


@pytest.mark.parametrize(("scale", "top_p"), [(6.0, 0.9), (0.1, 0.7), (3.0, 0.01), (0.1, 0.999)])
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
    uniforms = torch.linspace(0, 0.9999, 4000).tolist()
    drawn = sample(
        table.expand(4000, -1).clone(), draws=[draw(top_p=0.8, uniform=u) for u in uniforms]
    )
    counts = torch.bincount(torch.tensor([d.token for d in drawn]), minlength=VOCAB) / 4000
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    expected[inside] = table[0].double().softmax(-1)[inside]
    assert float((counts - expected / expected.sum()).abs().max()) < 1e-3


@pytest.mark.parametrize("top_p", [0.25, 0.2501, 0.9999])
def test_of_equal_tokens_as_many_are_inside_as_are_needed(top_p: float) -> None:
    uniforms = torch.linspace(0, 0.9999, 4000).tolist()
    drawn = sample(torch.zeros(4000, VOCAB), draws=[draw(top_p=top_p, uniform=u) for u in uniforms])
    assert {d.token for d in drawn} == set(range(math.ceil(round(top_p * VOCAB, 2))))


@pytest.mark.parametrize("top_p", [1.0, 0.99, 0.5, 1e-7])
def test_only_tokens_of_some_weight_are_drawn(top_p: float) -> None:
    """The very last number below 1, beside weights of zero before and behind."""
    table = torch.full((2, VOCAB), -1e30)
    table[:, [70, 500, 501]] = 0.0
    draws = [draw(0.5, top_p, uniform=uniform) for uniform in (0.0, 1 - 2**-24)]
    drawn = [d.token for d in sample(table, draws=draws)]
    assert set(drawn) <= {70, 500, 501}
    assert len(set(drawn)) == (1 if top_p < 0.1 else 2)


def test_what_a_row_draws_is_its_own(way: str) -> None:
    """To the bit, whatever the rows beside it and however many threads there are."""
    table, uniforms = logits(200, scale=0.7), torch.rand(200).tolist()
    draws = [draw(0.9, 0.95 if i % 3 else 1.0, uniform=u) for i, u in enumerate(uniforms)]
    together = [d.token for d in sample(table.clone(), draws=draws)]
    alone = [sample(table[i : i + 1].clone(), draws=draws[i : i + 1])[0].token for i in range(200)]
    assert together == alone
    if way != "torch":
        places = drawing.draw(table, [(1.0, 1.0, u) for u in uniforms])
        expected = table.double().softmax(-1).cumsum(-1)
        target = torch.tensor(uniforms, dtype=torch.float64)[:, None]
        exact = torch.searchsorted(expected, target, right=True)[:, 0]
        assert (torch.tensor(places) - exact).abs().max() <= 1  # of 200, at most at an edge
        assert int((torch.tensor(places) == exact).sum()) >= 198


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


def test_logprobs_are_the_same_bits_whatever_rows_are_beside() -> None:
    """Also of so wide a vocabulary that torch would share one row among threads."""
    table = torch.randn(6, 49152, generator=torch.Generator().manual_seed(1))
    draws = [draw(0, top_logprobs=2)] * 6
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    together = sample(table.clone(), draws=draws)
    alone = [sample(table[i : i + 1].clone(), draws=draws[:1])[0] for i in range(6)]
    torch.set_num_threads(threads)
    assert together == alone
    assert together[0].logprob == pytest.approx(float(table[0].log_softmax(-1).amax()), abs=1e-5)


def test_of_equal_alternatives_the_same_are_told_however_many_others_want() -> None:
    table = logits(2, scale=1.0).round()
    for count in (1, 2, 5):
        alone = sample(table[:1].clone(), draws=[draw(0, top_logprobs=count)])
        assert (
            sample(table.clone(), draws=[draw(0, top_logprobs=n) for n in (count, 20)])[:1] == alone
        )
        scored = score(table[:1], asked=[Asked(0, 5, count)])
        assert score(table, asked=[Asked(0, 5, count), Asked(1, 5, 20)])[:1] == scored


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
    """Whether rows are looked through by blocks or not."""
    logits_nv = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
    logits_nv[1] = 0.0
    logits_nv[2, [300, 301, 490]] = 9.0
    logits_nv[3, 400] = float("nan")
    expected: list[int] = logits_nv.argmax(-1).tolist()
    drawn = sample(logits_nv, draws=[Draw(temperature=0, top_p=1, uniform=0.5)] * 40)
    assert [one.token for one in drawn if one.finite] == expected[:3] + expected[4:]
    assert [row for row, one in enumerate(drawn) if not one.finite] == [3]
