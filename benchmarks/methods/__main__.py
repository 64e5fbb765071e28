"""`python -m benchmarks.methods`: compare methods as a user would, and keep figures and plot.

A whole installation is started in a temporary folder and asked over HTTP. The last line of the
output is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.methods.data import Data, find_data
from benchmarks.methods.slots import exact_slots
from benchmarks.record import RESULTS, gather, save
from cli.client import Client
from cli.compare import parse_methods
from cli.compare_report import follow, print_table
from cli.console import out
from cli.demo import EXAMPLES
from cli.temporary import installation

PLOTS = ("svg", "png")


def main() -> None:
    """Run the comparison that the command line asks for."""
    options = read_options()
    with tempfile.TemporaryDirectory(prefix="graftwork-bench-") as folder:
        scratch = Path(folder)
        data = find_data(options.data, rows=options.rows, seed=options.seed, scratch=scratch)
        with (
            installation(scratch / "data") as (url, key),
            Client(url, api_key=key) as client,
        ):
            result = measure(client, data, options=options)
    print(json.dumps(result))
    if result["status"] != "succeeded":
        sys.exit(1)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.methods", description=__doc__)
    parser.add_argument("--data", type=Path, default=EXAMPLES, help="a folder with two JSONL files")
    parser.add_argument("--tokens", type=int, default=12_000, help="that each method trains on")
    parser.add_argument("--methods", default="all", help="all, or kinds as in lora:rank=8,ia3")
    parser.add_argument("--rows", type=int, default=150, help="validation rows at most")
    parser.add_argument("--metric", default="auto")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--name", help="of the result files; default: the folder's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def measure(client: Client, data: Data, *, options: argparse.Namespace) -> dict[str, Any]:
    """Run a comparison, print its table, write the results, and return them."""
    began = time.monotonic()
    body = {
        "training_file": client.upload(data.train)["id"],
        "validation_file": client.upload(data.valid)["id"],
        "methods": parse_methods(options.methods),
        "budget": {"tokens": options.tokens},
        "metric": options.metric,
        "max_validation_rows": options.rows,
        "seed": options.seed,
    }
    posted = client.post("/fine_tuning/comparisons", body)
    ended = follow(client, posted["id"])
    print_table(ended)
    rows = ended["result"]["rows"]
    for row in rows:
        row["exact_slots"] = slots_of(client, row)
        if row["exact_slots"] is not None:
            out.print(f"{row['label']:<40} exact slots {row['exact_slots']:6.1%}", markup=False)
    name = options.name or data.name
    options.out.mkdir(parents=True, exist_ok=True)
    if ended["status"] == "succeeded":
        for form in PLOTS:
            path = f"/fine_tuning/comparisons/{ended['id']}/plot.{form}"
            client.download(path, options.out / f"{name}.{form}")
    result = {
        "benchmark": "methods",
        "data": name,
        "status": ended["status"],
        "error": ended["error"],
        "base": ended["model"],
        "rows": data.rows,
        "budget": ended["budget"],
        "seed": ended["seed"],
        "metric": ended["result"]["metric"],
        "pareto": ended["result"]["pareto"],
        "results": [without_ids(row) for row in rows],
        "minutes": round((time.monotonic() - began) / 60, 1),
        **gather(),
    }
    save(name, result, folder=options.out)
    return result


def slots_of(client: Client, row: dict[str, Any]) -> float | None:
    """Return the exact slots of what a method answered."""
    if row["answers"] is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        client.download(f"/files/{row['answers']}/content", path)
        return exact_slots(json.loads(line) for line in path.read_text().splitlines())


def without_ids(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row less the names of things that are gone with the installation."""
    return {name: value for name, value in row.items() if name not in ("job", "model", "answers")}


if __name__ == "__main__":
    main()
