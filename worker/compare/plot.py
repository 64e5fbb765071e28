"""The pictures of a comparison: quality against trained parameters and against training time.

Equal tables give equal bytes: no date, no random ids in the SVG, no state of pyplot.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from models.comparison import (
    BASE_LABEL,
    ComparisonResult,
    Cost,
    Measured,
    MethodResult,
    describe_budget,
    front,
    shorten,
)
from worker.compare.labels import Label, Place, place_labels

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BEST, OTHER, BASE = "#0b7285", "#9aa5b1", "#c2410c"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.hashsalt": "graftwork",
    "svg.fonttype": "path",
    "path.simplify": False,
}
RING: dict[str, Any] = {
    "markersize": 10.0,
    "markerfacecolor": "none",
    "markeredgewidth": 1.8,
    "zorder": 3.5,
}
NAMES = {"accuracy": "accuracy", "exact_match": "exact match", "bleu": "BLEU"}
DOTS_PER_INCH = 160
LEAST_SECONDS = 0.1
"""What takes less has a place of its own at the left."""


class Panel(NamedTuple):
    """One picture: what is on the horizontal axis."""

    name: str
    title: str
    cost: Callable[[MethodResult], float | None]
    format: Callable[[float], str]
    least: str
    """What stands at the left of the logarithmic axis."""
    ticks: Sequence[float]


class Point(NamedTuple):
    """A row of the table in one panel."""

    label: str
    cost: float
    quality: Measured


class Drawn(NamedTuple):
    """The labels of a panel, and the lines that they should not cover."""

    labels: list[Label]
    lines: list[tuple[Place, Place]]


class _Scale(NamedTuple):
    """A logarithmic axis with a place for zero to the left of it."""

    low: float
    high: float
    has_zero: bool

    @classmethod
    def of(cls, points: Sequence[Point]) -> "_Scale":
        positive = [point.cost for point in points if point.cost > 0] or [1.0]
        has_zero = any(point.cost <= 0 for point in points)
        return cls(min(positive), max(positive), has_zero)

    @property
    def zero(self) -> float:
        """Where zero stands."""
        return log10(self.low) - max(0.6, 0.12 * log10(self.high / self.low))

    def place(self, cost: float) -> float:
        """Return where a cost stands."""
        return log10(cost) if cost > 0 else self.zero


def format_count(value: float) -> str:
    """Return a count in few letters, such as 1.2M."""
    return "".join(shorten(value))


def format_seconds(value: float) -> str:
    """Return a time in seconds, minutes or hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


PARAMETERS = Panel(
    "parameters",
    "trained parameters",
    lambda row: float(row.parameters),
    format_count,
    "0",
    [10.0**power for power in range(13)],
)
COMPUTE = Panel(
    "compute",
    "training time",
    lambda row: row.seconds if row.seconds is None or row.seconds >= LEAST_SECONDS else 0.0,
    format_seconds,
    f"<{LEAST_SECONDS:g} s",
    [0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400],
)
PLOTS: dict[str, tuple[Panel, ...]] = {
    "both": (PARAMETERS, COMPUTE),
    "parameters": (PARAMETERS,),
    "compute": (COMPUTE,),
}


def draw_all(result: ComparisonResult, folder: Path) -> list[Path]:
    """Draw every plot as SVG and PNG into a folder; return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, panels in PLOTS.items():
        with mpl.rc_context(STYLE):
            figure = draw(result, panels=panels)
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else {"Software": None}
                figure.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
                paths.append(path)
    return paths


def draw(result: ComparisonResult, *, panels: Sequence[Panel]) -> Figure:
    """Return a figure with the panels side by side."""
    figure = Figure(figsize=(7.2 * len(panels), 5.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=12, fontweight="bold")
    drawn = []
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        points = _points(result, panel)
        _dress(axes, panel, points=points, metric=result.metric if number == 0 else None)
        if result.metric != "bleu":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        drawn.append((axes, _draw_points(axes, points)))
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -0.04 * top), top)  # nothing is worse than zero
    figure.canvas.draw()  # settles the layout, in which labels are then placed
    figure.set_layout_engine("none")
    for axes, content in drawn:
        place_labels(axes, content.labels, lines=content.lines, color=INK, line_color=OTHER)
    return figure


def _title(result: ComparisonResult) -> str:
    """Return what was compared on what, as far as the table says."""
    budget = describe_budget(result.budget) if result.budget else None
    return ", ".join(filter(None, [result.base, NAMES.get(result.metric, result.metric), budget]))


def _points(result: ComparisonResult, panel: Panel) -> list[Point]:
    points = []
    for row in result.rows:
        cost = panel.cost(row)
        if cost is not None and row.quality is not None:
            points.append(Point(row.label, cost, row.quality))
    return points


def _dress(axes: Axes, panel: Panel, *, points: Sequence[Point], metric: str | None) -> None:
    """Draw what is behind the points: axes, grid, and the place left of a logarithmic axis."""
    scale = _Scale.of(points)
    low, high = log10(scale.low), log10(scale.high)
    axes.set_xlim((scale.zero if scale.has_zero else low) - 0.25, high + 0.4)
    shown = [tick for tick in panel.ticks if low - 0.2 <= log10(tick) <= high + 0.4]
    ticks = [scale.zero] * scale.has_zero + [log10(tick) for tick in shown]
    names = [panel.least] * scale.has_zero + [panel.format(tick) for tick in shown]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda _, index: names[index or 0]))
    axes.xaxis.set_minor_locator(NullLocator())
    if scale.has_zero:
        middle = (scale.zero + low) / 2
        axes.axvline(middle, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    apart = f"; {panel.least} apart" if scale.has_zero else ""
    axes.set_xlabel(f"{panel.title} (log scale{apart})")
    axes.set_title(f"Quality against {panel.title}", loc="left", fontsize=10)
    if metric is not None:
        axes.set_ylabel(f"{NAMES.get(metric, metric)} on validation rows, 95 % interval")


def _draw_points(axes: Axes, points: Sequence[Point]) -> Drawn:
    """Draw points, intervals and the Pareto front; return what labels must respect."""
    scale = _Scale.of(points)
    places = {point.label: (scale.place(point.cost), point.quality.value) for point in points}
    best = front(Cost(point.label, point.cost, point.quality.value) for point in points)
    corners = _corners([places[label] for label in best])
    axes.plot(
        *zip(*corners, strict=True),
        color=BEST,
        linewidth=1.4,
        alpha=0.5,
        zorder=2,
        label="Pareto front",
    )
    for point in points:
        x, y = places[point.label]
        color = BASE if point.label == BASE_LABEL else BEST if point.label in best else OTHER
        interval = [[max(0.0, y - point.quality.low)], [max(0.0, point.quality.high - y)]]
        axes.errorbar(
            x, y, yerr=interval, fmt="none", ecolor=color, elinewidth=1.0, alpha=0.45, zorder=2.5
        )
        if point.label == BASE_LABEL:  # a ring, so that it shows what it is drawn over
            axes.plot(x, y, "o", color=color, **RING)
        else:
            axes.plot(x, y, "o", color=color, markersize=6.5, markeredgecolor="white", zorder=3)
    if len(best) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    labels = [Label(point.label, places[point.label], point.label in best) for point in points]
    lines = [
        ((places[point.label][0], point.quality.low), (places[point.label][0], point.quality.high))
        for point in points
    ]
    return Drawn(labels, [*lines, *pairwise(corners)])


def _corners(places: Sequence[Place]) -> list[Place]:
    """Return the way along a front: level to the next point's cost, then up to it."""
    corners = list(places[:1])
    for (_, y), (next_x, next_y) in pairwise(places):
        corners += [(next_x, y), (next_x, next_y)]
    return corners
