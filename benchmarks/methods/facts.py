"""What figures depend on: versions, machine, commit."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.smoke import describe_machine

PACKAGES = ("torch", "transformers", "peft", "graftwork")
CPU_INFO = Path("/proc/cpuinfo")


def gather() -> dict[str, Any]:
    """Return the facts to print beside figures."""
    machine = {**describe_machine(), "cpu": _cpu()}
    machine.pop("torch")
    return {
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES},
        "machine": machine,
        "commit": _commit(),
    }


def _cpu() -> str | None:
    if not CPU_INFO.exists():
        return None
    lines = CPU_INFO.read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def _commit() -> str | None:
    """Return the commit, with a mark if files differ from it."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
