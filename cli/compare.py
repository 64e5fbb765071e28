"""`graftwork compare`: train several methods on one data set and show which is worth its cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import err, fail, out
from cli.options import DEFAULT_URL, ApiKey, BaseUrl
from cli.train import parse_options

Train = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="JSONL that every method trains on.")
]
Valid = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="JSONL that every method is asked.")
]
Methods = Annotated[
    str,
    typer.Option(
        help="`all`, or kinds as GET /v1/methods names them, between commas; options behind "
        "colons, lists joined by +: lora:rank=8:target_modules=q_proj+v_proj,ia3. "
        "A list of one ends in +."
    ),
]
Tokens = Annotated[int | None, typer.Option(min=1, help="Train each on so many tokens.")]
Seconds = Annotated[float | None, typer.Option(min=0, help="Train each for so long instead.")]
Plot = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Write the plot here, .svg or .png.")
]
Metric = Annotated[str, typer.Option(help="auto, accuracy, exact_match or bleu.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Ask at most so many validation rows.")]
Suffix = Annotated[str | None, typer.Option(help="Goes into the new models' ids.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of all chance; default: drawn anew.")]


def compare(
    train: Train,
    valid: Valid,
    methods: Methods = "all",
    tokens: Tokens = None,
    seconds: Seconds = None,
    plot: Plot = None,
    metric: Metric = "auto",
    rows: Rows = None,
    suffix: Suffix = None,
    seed: Seed = None,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Compare methods at the same budget on your data."""
    from cli.client import Client
    from cli.compare_report import follow, print_table

    if plot and plot.suffix not in (".svg", ".png"):
        fail(f"{plot} must end in .svg or .png.")
    if plot and not plot.parent.is_dir():
        fail(f"There is no folder {plot.parent} to write {plot.name} into.")
    budget = {k: v for k, v in {"tokens": tokens, "seconds": seconds}.items() if v is not None}
    options = {
        "budget": budget or None,
        "max_validation_rows": rows,
        "suffix": suffix,
        "seed": seed,
    }
    with Client(base_url, api_key=api_key) as client:
        body: dict[str, Any] = {
            "training_file": client.upload(train)["id"],
            "validation_file": client.upload(valid)["id"],
            "methods": parse_methods(methods),
            "metric": metric,
            **{name: value for name, value in options.items() if value is not None},
        }
        posted = client.post("/fine_tuning/comparisons", body)
        err.print(f"{posted['id']}: {len(posted['jobs'])} jobs.", markup=False)
        try:
            ended = follow(client, posted["id"])
        except KeyboardInterrupt:
            err.print(f"\nThe comparison goes on: GET /v1/fine_tuning/comparisons/{posted['id']}")
            return
        print_table(ended)
        if ended["status"] != "succeeded":
            error = ended["error"] or {}
            fail(f"{posted['id']} {ended['status']}. {error.get('message', '')}")
        if plot:
            path = f"/fine_tuning/comparisons/{posted['id']}/plot{plot.suffix}"
            client.download(path, plot)
            out.print(f"The plot is in {plot}.", markup=False)


def parse_methods(text: str) -> str | list[dict[str, Any]]:
    """Read `all`, or kinds with their options, as the api takes them."""
    if text.strip() == "all":
        return "all"
    blocks = []
    for item in text.split(","):
        kind, *options = item.strip().split(":")
        given = parse_options(options, flag="--methods")
        blocks.append({"type": kind} | {name: _split(value) for name, value in given.items()})
    return blocks


def _split(value: Any) -> Any:
    """Read `a+b` as a list, and `a+` as one of a single item."""
    if isinstance(value, str) and "+" in value:
        return value.removesuffix("+").split("+")
    return value
