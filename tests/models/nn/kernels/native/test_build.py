"""What cannot be built or loaded is said, and plain torch does the work."""

from pathlib import Path

import pytest

from models.nn.kernels import native
from models.nn.kernels.native import build


def test_a_compiler_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(build, "library_path", lambda: tmp_path / "build" / "kernels.so")
    with pytest.raises(build.CannotBuild):
        build.build()
    assert not (tmp_path / "build" / "kernels.so").exists()


def test_a_library_that_cannot_be_loaded_is_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"no library")
    monkeypatch.delenv("GRAFTWORK_NATIVE", raising=False)
    monkeypatch.setattr(native, "library_path", lambda: broken)
    native.load.cache_clear()
    try:
        assert native.library() is None
        assert "cannot be loaded" in native.reason()
    finally:
        native.load.cache_clear()


def test_the_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_NATIVE", "off")
    native.load.cache_clear()
    try:
        assert native.library() is None
        assert "GRAFTWORK_NATIVE" in native.reason()
    finally:
        native.load.cache_clear()


def test_a_library_that_checks_itself_lies_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTWORK_NATIVE", raising=False)
    served = build.library_path()
    monkeypatch.setenv("GRAFTWORK_NATIVE", "sanitized")
    assert build.library_path().parent == served.parent / "sanitized"
    assert build.library_path().name != served.name
