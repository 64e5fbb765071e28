"""The guide's method, written as one file into a copy, passes the contract there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_method_is_one_file(tmp_path: Path) -> None:
    for name in ("api", "core", "migrations", "models", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    guide = (ROOT / "docs" / "add-a-method.md").read_text()
    code = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "models" / "nn" / "methods" / "bias.py").write_text(code[0])
    command = [
        "-m",
        "pytest",
        "tests/models/nn/methods/test_contract.py",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    contract = subprocess.run(
        [sys.executable, *command, "-k", "bias-0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert contract.returncode == 0, contract.stdout
    tests = int(re.findall(r"(\d+) passed", contract.stdout)[0])
    assert tests >= 10, contract.stdout
