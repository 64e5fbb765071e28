"""`graftwork adapters` against a running api."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from models.wire import InspectReply
from tests.api.conftest import Stack
from tests.api.fake_engine import FITS
from tests.api.test_adapters import FILES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a training script leaves: an adapter, and things that are none of ours."""
    made = tmp_path / "my adapter"
    made.mkdir()
    for name, content in {**FILES, "training_args.bin": b"\x80\x04.", "README.md": b""}.items():
        (made / name).write_bytes(content)
    return made


def run(stack: Stack, key: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    where = ["--base-url", f"{stack.url}/v1", "--api-key", key]
    command = [sys.executable, "-m", "cli", "adapters", *arguments, *where]
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": root}, capture_output=True, text=True, timeout=60
    )


def test_a_folder_goes_in_and_a_zip_comes_out(stack: Stack, key: str, folder: Path) -> None:
    made = run(stack, key, "import", str(folder), "--suffix", "back", folder=folder)
    assert made.returncode == 0, made.stderr
    assert "2 tensors fit, 100 parameters" in made.stderr
    name = made.stdout.strip()
    assert ":back:" in name
    out = run(stack, key, "export", name, folder=folder)
    assert out.returncode == 0, out.stderr
    zipped = folder / out.stdout.strip()
    assert set(zipfile.ZipFile(zipped).namelist()) == {*FILES, "README.md"}
    again = run(stack, key, "import", str(zipped), folder=folder)
    assert again.returncode == 0, again.stderr
    named = run(stack, key, "export", name, "there.zip", folder=folder)
    assert named.stdout.strip() == "there.zip"
    assert (folder / "there.zip").read_bytes() == zipped.read_bytes()


def test_a_classifier_is_called_by_its_own_endpoint(stack: Stack, key: str, folder: Path) -> None:
    method = {"type": "head", "labels": ["ham", "spam"]}
    stack.engine.finding = InspectReply(method=method, parameters=9, matched=["one"])
    try:
        made = run(stack, key, "import", str(folder), folder=folder)
    finally:
        stack.engine.finding = FITS
    assert made.returncode == 0, made.stderr
    assert "POST /v1/classifications" in made.stderr
    assert "graftwork chat" not in made.stderr


def test_what_does_not_fit_is_told_in_lines(stack: Stack, key: str, folder: Path) -> None:
    names = [f"tensor-{number}" for number in range(9)]
    stack.engine.finding = InspectReply(problems=["Tensors are missing."], missing=names)
    try:
        refused = run(stack, key, "import", str(folder), folder=folder)
    finally:
        stack.engine.finding = FITS
    assert refused.returncode == 1
    assert "missing: tensor-0" in refused.stderr
    assert "missing: 4 more" in refused.stderr
    (folder / "adapter_model.safetensors").unlink()
    refused = run(stack, key, "import", str(folder), folder=folder)
    assert "safe_serialization" in refused.stderr
    missing = run(stack, key, "export", "ft:nobody", folder=folder)
    assert (missing.returncode, "does not exist" in missing.stderr) == (1, True)
    assert not list(folder.glob("*.zip*"))


def test_a_file_goes_into_no_folder_that_is_not_there(stack: Stack, key: str, folder: Path) -> None:
    lost = run(stack, key, "export", "ft:nobody", "nowhere/there.zip", folder=folder)
    assert lost.returncode == 1
    assert "There is no folder nowhere" in lost.stderr
