import pytest
import torch

from models.nn.executors import NOBODY, Bank, DropoutSource, Packed, Segment, Segments
from models.nn.terms import LinearTerm, Terms

PLACE = "layers.0.x"
IN, OUT = 5, 7


def _random(*dimensions):
    return torch.randn(*dimensions)


def _terms(**fields) -> Terms:
    return Terms({PLACE: LinearTerm(**fields)})


def _every_kind() -> list[Terms]:
    """One adapter for each field, one with all of them, one in the open form, one elsewhere."""
    low = {"down": _random(2, IN), "up": _random(OUT, 2), "scale": 0.5}
    vectors = {
        "input_scale": _random(IN),
        "output_scale": _random(OUT),
        "bias": _random(OUT),
    }
    matrix = _random(OUT, OUT)
    return [
        _terms(**low),
        *(_terms(**{name: vector}) for name, vector in vectors.items()),
        _terms(**low | {"down": _random(3, IN), "up": _random(OUT, 3), "scale": -2.0}, **vectors),
        _terms(function=lambda x, y: y @ matrix + x.sum(-1, keepdim=True)),
        Terms({"layers.0.other": LinearTerm(**low)}),
    ]


def _apply(executor, x, weight):
    inner = executor.linear_input(PLACE, x)
    return executor.linear(PLACE, inner, inner @ weight.T)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_term_is_the_formula_of_its_docstring():
    x, weight, base_bias = _random(4, IN), _random(OUT, IN), _random(OUT)
    term = LinearTerm(
        down=_random(2, IN),
        up=_random(OUT, 2),
        scale=0.5,
        input_scale=_random(IN),
        output_scale=_random(OUT),
        bias=_random(OUT),
    )
    executor = Segments([Segment(0, 4, Terms({PLACE: term}))])
    inner = executor.linear_input(PLACE, x)
    output = executor.linear(PLACE, inner, inner @ weight.T + base_bias)
    merged = weight + term.scale * term.up @ term.down
    expected = (x * term.input_scale) @ merged.T + base_bias
    torch.testing.assert_close(output, expected * term.output_scale + term.bias)


def test_packed_equals_segments_for_every_field_in_any_order_of_rows():
    adapters = _every_kind()
    x, weight = _random(40, IN), _random(OUT, IN)
    slots = torch.randint(0, len(adapters) + 1, (40,))
    together = _apply(Packed(Bank.of(adapters), slots), x, weight)
    for row, slot in enumerate(slots.tolist()):
        terms = adapters[slot - 1] if slot else None
        alone = _apply(Segments([Segment(0, 1, terms)]), x[row : row + 1], weight)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_segments_leave_rows_between_them_to_the_base():
    adapter = _every_kind()[0]
    x, weight = _random(9, IN), _random(OUT, IN)
    output = _apply(Segments([Segment(2, 4, adapter), Segment(6, 7, None)]), x, weight)
    base = _apply(NOBODY, x, weight)
    changed = (output != base).any(-1)
    assert changed.tolist() == [False, False, True, True, *[False] * 5]


def test_base_rows_of_a_packed_batch_are_the_base_to_the_bit():
    adapters = _every_kind()[:-2]
    x, weight = _random(8, IN), _random(OUT, IN)
    slots = torch.tensor([0, 1, 0, 2, 3, 0, 4, 5])
    output = _apply(Packed(Bank.of(adapters), slots), x, weight)
    assert torch.equal(output[slots == 0], _apply(NOBODY, x, weight)[slots == 0])


@pytest.mark.parametrize("rows", [[0, 1, 5, 8], [8, 0, 5], [3], [2, 2, 7]])
def test_executors_are_re_indexed_for_the_rows_picked(rows):
    adapters = _every_kind()
    rows = torch.tensor(rows)
    x, weight = _random(9, IN), _random(OUT, IN)
    segments = Segments(
        [Segment(0, 3, adapters[0]), Segment(3, 6, None), Segment(6, 9, adapters[4])]
    )
    slots = torch.tensor([1, 1, 1, 0, 0, 0, 5, 5, 5])
    for executor in (segments, Packed(Bank.of(adapters), slots)):
        picked = _apply(executor.at(rows), x[rows], weight)
        torch.testing.assert_close(picked, _apply(executor, x, weight)[rows], atol=1e-5, rtol=1e-5)
    assert NOBODY.at(rows) is NOBODY


def test_dropout_is_a_function_of_its_counters_and_keeps_the_mean():
    x = torch.ones(400, 50)
    draw = {"probability": 0.25, "place": PLACE}
    first = DropoutSource(seed=1, step=2).drop(x, **draw)
    assert torch.equal(first, DropoutSource(seed=1, step=2, first_row=0).drop(x, **draw))
    others = [
        DropoutSource(seed=2, step=2).drop(x, **draw),
        DropoutSource(seed=1, step=3).drop(x, **draw),
        DropoutSource(seed=1, step=2, micro_batch=1).drop(x, **draw),
        DropoutSource(seed=1, step=2, first_row=1).drop(x, **draw),
        DropoutSource(seed=1, step=2).drop(x, **draw | {"place": "layers.1.x"}),
    ]
    assert not any(torch.equal(first, other) for other in others)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert first.mean().item() == pytest.approx(1.0, abs=0.02)


def test_dropout_acts_in_training_only_and_on_the_low_rank_part_only():
    down, up = _random(2, IN), _random(OUT, 2)
    terms = _terms(down=down, up=up, dropout=0.5)
    x, weight = _random(6, IN), _random(OUT, IN)
    source = DropoutSource(seed=0, step=0)
    trained = _apply(Segments([Segment(0, 6, terms, source)]), x, weight)
    dropped = source.drop(x, probability=0.5, place=PLACE)
    torch.testing.assert_close(trained, x @ weight.T + dropped @ down.T @ up.T)
    evaluated = _apply(Segments([Segment(0, 6, terms)]), x, weight)
    torch.testing.assert_close(evaluated, x @ weight.T + x @ down.T @ up.T)


@pytest.mark.parametrize("bounds", [[(2, 1)], [(0, 3), (2, 4)], [(1, 1)]])
def test_segments_that_overlap_or_are_empty_are_refused(bounds):
    with pytest.raises(ValueError, match="Segments"):
        Segments([Segment(*pair, None) for pair in bounds])


@pytest.mark.parametrize(
    "fields", [{"down": torch.ones(1, IN)}, {"bias": torch.ones(OUT), "function": torch.add}]
)
def test_terms_without_a_meaning_are_refused(fields):
    with pytest.raises(ValueError, match="term"):
        LinearTerm(**fields)
