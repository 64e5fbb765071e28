"""`python -m benchmarks.train`: our training beside peft and the Trainer, on the same steps.

The last line of the output is one JSON object; its key `ratios` holds the figures that count.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import record
from benchmarks.sides import JSON, ROOT, environment, start_plain
from benchmarks.train.parts import EXTRA, PARTS
from benchmarks.train.rows import SEED
from benchmarks.train.sizes import FULL_SIZE, QUICK_SIZE
from benchmarks.train.stage import Stage
from core.settings import Settings


def main() -> None:
    """Run the parts that the command line asks for, and leave their figures."""
    options = read_options()
    start_plain()
    record.announce()
    began = time.monotonic()
    found: dict[str, JSON] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graftwork-bench-")))
        stage = Stage(
            base_folder=pull_base(scratch / "data"),
            data=options.data,
            scratch=scratch,
            size=QUICK_SIZE if options.quick else FULL_SIZE,
            variables=environment(threads=options.threads),
            seed=options.seed,
        )
        for name in [*options.only, *(EXTRA if options.profile else ())]:
            print(f"== {name}", flush=True)
            started = time.monotonic()
            with stage.failures.guard(name):
                found[name] = {**PARTS, **EXTRA}[name](stage)
            print(f"== {name} took {time.monotonic() - started:.0f} s", flush=True)
    result = {
        "benchmark": "train",
        "quick": options.quick,
        "data": "shipped rows" if options.data is None else options.data.name,
        "base": Settings().base,
        "threads": stage.variables["OMP_NUM_THREADS"],
        "seed": options.seed,
        **record.gather(),
        "parts": found,
        "failures": stage.failures,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "ratios": {key: value for part in found.values() for key, value in part["ratios"].items()},
    }
    record.save(options.name, result, folder=options.out)
    record.finish(result)
    if stage.failures:
        sys.exit(1)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: some ten minutes")
    parser.add_argument("--data", type=Path, help="a folder of chat sets; default: our own rows")
    parser.add_argument(
        "--profile", action="store_true", help="and where time goes, and what more work costs"
    )
    parser.add_argument("--threads", type=int, help="of every side; default: every core")
    parser.add_argument("--seed", type=int, default=SEED, help="of rows, their order and starts")
    parser.add_argument("--only", type=_names, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--name", default="train", help="of the result file")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    return parser.parse_args(arguments)


def pull_base(data_folder: Path) -> Path:
    """Put the base into a folder for this run; return where it lies."""
    command = [sys.executable, "-m", "cli", "pull", "--data-dir", str(data_folder)]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
    return data_folder / "bases" / Settings().base


def _names(text: str) -> list[str]:
    names = text.split(",") if text else []
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    main()
