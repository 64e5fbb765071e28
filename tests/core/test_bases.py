from pathlib import Path

import pytest

from core.bases import read_manifest, verify, write_manifest
from core.errors import Corrupt, NotFound


def test_a_base_is_pinned_by_every_byte(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    made = write_manifest(tmp_path, id="tiny", shape={"hidden": 8}, renderer_digest="r")
    assert read_manifest(tmp_path) == made
    assert verify(tmp_path) == made
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(Corrupt, match=r"model\.safetensors"):
        verify(tmp_path)


def test_a_missing_base_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="graftwork pull tiny"):
        read_manifest(tmp_path / "tiny")
