"""Environments of peers that cannot share ours, made on first use below `.venv-bench/`."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sides import ROOT

FOLDER = ROOT / ".venv-bench"


def make_environment(name: str, requirements: Sequence[str], *, remove: Sequence[str] = ()) -> Path:
    """Return the python of an environment that holds `requirements`, and none of `remove`.

    It is made again when they change; pip's error is raised as it is if they cannot be installed.
    """
    target = FOLDER / name
    python = target / "bin" / "python"
    marker = target / "requirements.txt"
    wanted = "\n".join([*requirements, *(f"# without {package}" for package in remove)]) + "\n"
    if marker.is_file() and marker.read_text() == wanted:
        return python
    venv.create(target, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *requirements], check=True, stdout=sys.stderr)
    if remove:
        subprocess.run([*pip, "uninstall", "-y", *remove], check=True, stdout=sys.stderr)
    marker.write_text(wanted)
    return python
