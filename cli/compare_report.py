"""Follows a comparison over HTTP and prints its table."""

import time
from math import inf
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.client import JSON, Client
from cli.console import err, out
from models.comparison import describe_budget, shorten

ENDED = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 2.0
WIDTH = 132
COLUMNS = (
    "method",
    "quality",
    "95 % interval",
    "loss",
    "parameters",
    "artifact",
    "tokens/s",
    "peak memory",
    "training",
    "serving",
)
ON_FRONT = "* Pareto front: no other row is as good with as few trained parameters."


def follow(client: Client, comparison_id: str) -> JSON:
    """Show a comparison until it has ended, and return it."""
    path = f"/fine_tuning/comparisons/{comparison_id}"
    shown: dict[str, str] = {}
    with Live(console=err, transient=True, auto_refresh=False) as live:
        while True:
            found = client.poll(path, patience=inf)
            if err.is_terminal:
                live.update(make_table(found), refresh=True)
            else:
                _print_changes(found, shown=shown)
            if found["status"] in ENDED:
                return found
            time.sleep(POLL_SECONDS)


def print_table(comparison: JSON) -> None:
    """Print the table, and below it the ids of the models and why rows are missing."""
    width = None if out.is_terminal else max(out.width, WIDTH)
    console = Console(width=width, highlight=False, emoji=False)
    console.print(make_table(comparison))
    rows = comparison["result"]["rows"]
    if models := [row for row in rows if row["model"]]:
        width = max(len(row["label"]) for row in models)
        out.print("Models:", style="bold")
        for row in models:
            out.print(f"  {row['label']:{width}}  {row['model']}", markup=False)
    for row in rows:
        if row["error"]:
            out.print(f"{row['label']}: {row['error']}", style="dim", markup=False)


def make_table(comparison: JSON) -> Table:
    """Return the table as far as it goes; rows of the Pareto front are bold and have a `*`."""
    result = comparison["result"]
    title = f"{comparison['model']}: {result['metric']}, {describe_budget(comparison['budget'])}"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        caption=ON_FRONT if result["pareto"] else None,
        caption_justify="left",
        pad_edge=False,
    )
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in result["rows"]:
        best = row["label"] in result["pareto"]
        name, *figures = _cells(row, metric=result["metric"])
        cells = [f"{'*' if best else ' '} {name}", *figures]
        table.add_row(*map(Text, cells), style="bold" if best else None)
    return table


def _print_changes(comparison: JSON, *, shown: dict[str, str]) -> None:
    """Print a line for each row that has got on."""
    result = comparison["result"]
    for row in result["rows"]:
        status = row["status"]
        if shown.get(row["label"]) == status or status in ("queued", "validating_files"):
            continue
        shown[row["label"]] = status
        _, quality, *_ = _cells(row, metric=result["metric"])
        words = quality if status == "done" else status
        err.print(f"{row['label']}: {words}", markup=False)


def _cells(row: JSON, *, metric: str) -> list[str]:
    quality = row["quality"]
    base = row["job"] is None
    return [
        row["label"],
        _quality(quality["value"], metric=metric) if quality else row["status"].replace("_", " "),
        " to ".join(_quality(quality[end], metric=metric) for end in ("low", "high"))
        if quality
        else "",
        _or_nothing(row["loss"], "{:.3f}"),
        _size(row["parameters"]),
        "" if base else _size(row["artifact_bytes"], unit="B"),
        _or_nothing(row["tokens_per_second"], "{:.0f}"),
        "" if row["peak_bytes"] is None else _size(row["peak_bytes"], unit="B"),
        "" if base else _or_nothing(row["seconds"], "{:.0f} s"),
        _or_nothing(row["serving_overhead"], "{:.2f} x"),
    ]


def _quality(value: float, *, metric: str) -> str:
    return f"{value:.1f}" if metric == "bleu" else f"{value:.1%}"


def _or_nothing(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _size(value: int, *, unit: str = "") -> str:
    digits, prefix = shorten(value)
    return f"{digits} {prefix}{unit}".strip()
