"""The pictures: equal bytes for equal tables, names that do not cover each other."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import msgspec
import pytest
from matplotlib.text import Annotation

from models.comparison import ComparisonResult, Cost, Measured, MethodResult, front, pareto
from worker.compare.plot import COMPUTE, PARAMETERS, STYLE, draw, draw_all, format_seconds

ROWS = {
    "base": (0, 0.0, 0.52),
    "shown": (0, 20.0, 0.61),
    "probe": (1154, 30.0, 0.78),
    "top": (1154, 35.0, 0.77),
    "words": (16, 300.0, 0.58),
    "vectors": (11520, 110.0, 0.63),
    "low rank": (4884480, 140.0, 0.86),
    "low rank (2)": (4884480, 141.0, 0.859),
    "low rank split": (4970000, 190.0, 0.865),
    "everything": (134515008, 400.0, 0.88),
}


def table() -> ComparisonResult:
    rows = [
        MethodResult(
            label=label,
            method={},
            job=None if label == "base" else label,
            parameters=parameters,
            seconds=seconds,
            quality=Measured(quality, quality - 0.04, quality + 0.05),
        )
        for label, (parameters, seconds, quality) in ROWS.items()
    ]
    rows.append(MethodResult(label="broken", method={}, job="x", status="failed"))
    return ComparisonResult(metric="accuracy", rows=rows, pareto=pareto(rows))


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    first = draw_all(table(), tmp_path / "a")
    again = draw_all(table(), tmp_path / "b")
    assert len(first) == 6
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    svg = (tmp_path / "a" / "both.svg").read_text()
    ET.fromstring(svg)
    assert not re.search(r"<dc:date>", svg)


def test_no_name_covers_another() -> None:
    with mpl.rc_context(STYLE):
        figure = draw(table(), panels=(PARAMETERS, COMPUTE))
        figure.canvas.draw()
    for axes in figure.axes:
        names = [child for child in axes.get_children() if isinstance(child, Annotation)]
        assert {name.get_text() for name in names} == set(ROWS)
        boxes = [name.get_tightbbox() for name in names if name.arrow_patch is None]
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_the_picture_says_what_it_shows_and_the_base_is_over_its_neighbours() -> None:
    result = msgspec.structs.replace(table(), base="tiny", budget={"tokens": 12000})
    figure = draw(result, panels=(PARAMETERS, COMPUTE))
    assert figure.get_suptitle() == "tiny, accuracy, 12,000 tokens each"
    for axes, least in zip(figure.axes, ("0", "<0.1 s"), strict=True):
        assert axes.get_xticklabels()[0].get_text() == least
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        [base] = [line for line in dots if line.get_markerfacecolor() == "none"]
        assert base.get_zorder() > max(line.get_zorder() for line in dots if line is not base)


def test_one_row_is_a_picture_too(tmp_path: Path) -> None:
    row = MethodResult(label="base", method={}, seconds=0.0, quality=Measured(12.0, 10.0, 14.0))
    assert draw_all(ComparisonResult(metric="bleu", rows=[row]), tmp_path)


def test_a_front_is_what_nothing_beats_in_both() -> None:
    costs = [
        Cost("dear and good", 9, 0.9),
        Cost("cheap and poor", 1, 0.2),
        Cost("cheap and better", 1, 0.5),
        Cost("dearer, no better", 5, 0.5),
        Cost("equal to the best", 9, 0.9),
    ]
    assert front(costs) == ["cheap and better", "dear and good"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.3, "0.3 s"), (30, "30 s"), (600, "10 min"), (5400, "1.5 h")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
