"""Puts names beside the points of a plot so that no two of them cover each other.

Pixels throughout: each label tries places around its point, near ones first, and takes the one
that covers least of what is there.
"""

from collections.abc import Iterator, Sequence
from math import cos, hypot, radians, sin
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

POINT_RADIUS = 5.0
DISTANCES = (8.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0)
ANGLES = (0, 180, 40, 140, -40, -140, 90, -90, 65, 115, -65, -115, 20, 160, -20, -160)
FONT_SIZE = 8.0
LINE_FROM = 13.0
"""A label that is farther from its point than this gets a line to it, in points of type."""
OUTSIDE_COST, LINE_COST, DISTANCE_COST = 40.0, 2.0, 1.5


Place = tuple[float, float]


class Label(NamedTuple):
    """A name and its point in data coordinates."""

    text: str
    point: Place
    strong: bool


class _Spot(NamedTuple):
    """A box for a label, at an offset from its point in points of type."""

    box: Bbox
    dx: float
    dy: float
    anchor: str
    distance: float


def place_labels(
    axes: Axes,
    labels: Sequence[Label],
    *,
    lines: Sequence[tuple[Place, Place]],
    color: str,
    line_color: str,
) -> None:
    """Write the labels; the axes' layout and limits must be final.

    `lines` are upright or level ones in data coordinates that are better not written upon.
    """
    scale = axes.figure.dpi / 72
    points = [_pixels(axes, label.point) for label in labels]
    marks = [_square(*point, radius=POINT_RADIUS * scale) for point in points]
    strokes = [_stroke(axes, line, width=2 * scale) for line in lines]
    taken: list[Bbox] = []
    for index in _crowded_first(points):
        label = labels[index]
        width, height = _measure(axes, label)
        others = [mark for number, mark in enumerate(marks) if number != index]
        best = min(
            _places(points[index], width=width, height=height, scale=scale),
            key=lambda spot: (
                sum(_overlap(spot.box, box) for box in (*taken, *others))
                + LINE_COST * sum(_overlap(spot.box, box) for box in strokes)
                + OUTSIDE_COST * _outside(spot.box, axes.bbox)
                + DISTANCE_COST * spot.distance
            ),
        )
        taken.append(best.box)
        _write(axes, label, spot=best, color=color, line_color=line_color)


def _write(axes: Axes, label: Label, *, spot: _Spot, color: str, line_color: str) -> None:
    line = {"arrowstyle": "-", "color": line_color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
    axes.annotate(
        label.text,
        label.point,
        xytext=(spot.dx, spot.dy),
        textcoords="offset points",
        ha=spot.anchor,
        va="center",
        fontsize=FONT_SIZE,
        fontweight="bold" if label.strong else "normal",
        color=color,
        zorder=4,
        bbox={
            "boxstyle": "square,pad=0.1",
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.7,
        },
        arrowprops=line if spot.distance > LINE_FROM else None,
    )


def _measure(axes: Axes, label: Label) -> tuple[float, float]:
    """Return the size of a label as it will be drawn."""
    text = axes.text(
        0,
        0,
        label.text,
        fontsize=FONT_SIZE,
        fontweight="bold" if label.strong else "normal",
    )
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _places(
    point: tuple[float, float], *, width: float, height: float, scale: float
) -> Iterator[_Spot]:
    """Yield boxes around a point, near ones first."""
    x, y = point
    for distance in DISTANCES:
        for angle in ANGLES:
            dx, dy = distance * cos(radians(angle)), distance * sin(radians(angle))
            anchor = "center" if abs(dx) < distance / 3 else "left" if dx > 0 else "right"
            left = x + dx * scale - {"left": 0.0, "center": width / 2, "right": width}[anchor]
            bottom = y + dy * scale - height / 2
            yield _Spot(
                Bbox.from_bounds(left - scale, bottom, width + 2 * scale, height),
                dx,
                dy,
                anchor,
                distance,
            )


def _crowded_first(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the order in which points choose: those with near neighbours have least choice."""

    def room(index: int) -> float:
        x, y = points[index]
        others = [hypot(x - ox, y - oy) for n, (ox, oy) in enumerate(points) if n != index]
        return min(others, default=0.0)

    return sorted(range(len(points)), key=room)


def _stroke(axes: Axes, line: tuple[Place, Place], *, width: float) -> Bbox:
    (x0, y0), (x1, y1) = (_pixels(axes, end) for end in line)
    return Bbox.from_extents(
        min(x0, x1) - width / 2,
        min(y0, y1) - width / 2,
        max(x0, x1) + width / 2,
        max(y0, y1) + width / 2,
    )


def _pixels(axes: Axes, point: Place) -> Place:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _square(x: float, y: float, *, radius: float) -> Bbox:
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _overlap(one: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else shared.width * shared.height


def _outside(box: Bbox, frame: Bbox) -> float:
    inside = Bbox.intersection(box, frame)
    covered = 0.0 if inside is None else inside.width * inside.height
    return box.width * box.height - covered
