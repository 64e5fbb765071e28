"""What every benchmark leaves behind: what its figures depend on, a file, and a last line."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.sides import ROOT, cores
from models.nn.backbone import pick_dtype
from models.nn.kernels.native import reason

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "graftwork")
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def dtype() -> str:
    """Return the name of what torch multiplies at full speed here, in which all sides compute."""
    return str(pick_dtype()).removeprefix("torch.")


def gather(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return the facts to print beside figures: versions, machine, commit."""
    return {
        "versions": {name: find_version(name) for name in packages},
        "machine": describe_machine(),
        "commit": describe_commit(),
    }


def announce() -> None:
    """Say by what our sides compute: kernels that were not built cost most of what is measured."""
    print(f"Our sides compute by {reason()}.", file=sys.stderr, flush=True)


def describe_machine() -> dict[str, Any]:
    """Return the machine, and how busy it is with other work."""
    return {
        "cores": len(cores()),
        "cpu": _cpu("model name"),
        "instructions": [name for name in INSTRUCTIONS if name in (_cpu("flags") or "").split()],
        "load": load(),
        "dtype": dtype(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": reason(),
    }


def load() -> float:
    """Return how many processes wanted a core in the last minute."""
    return round(os.getloadavg()[0], 1)


def find_version(package: str) -> str | None:
    """Return the version of a package of this environment, without its local part."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def describe_commit() -> str | None:
    """Return the commit, with a mark if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def save(name: str, result: dict[str, Any], *, folder: Path = RESULTS) -> Path:
    """Write a result to NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def finish(result: dict[str, Any]) -> None:
    """Print a result as the last line: one JSON object."""
    print(json.dumps(result), flush=True)


def _cpu(field: str) -> str | None:
    if not CPU_INFO.exists():
        return None
    lines = CPU_INFO.read_text().splitlines()
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, None)
