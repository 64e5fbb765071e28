"""What `graftwork doctor` finds by itself, without a server."""

import os
from pathlib import Path

import pytest

from cli.checks import check_settings
from core.settings import Settings


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("GRAFTWORK_ENGINE__ROWS", "ok"),
        ("graftwork_worker__compute__threads", "ok"),
        ("GRAFTWORK_NATIVE", "ok"),
        ("GRAFTWORK_ENGINE__ROW", "note"),
        ("GRAFTWORK_WORKER__COMPUTE__DTYPE", "note"),
        ("GRAFTWORK_DATADIR", "note"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "file"])
def test_names_that_are_no_settings_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, state: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for other in [one for one in os.environ if one.startswith("GRAFTWORK_")]:
        monkeypatch.delenv(other)
    if where == "environment":
        monkeypatch.setenv(name, "8")
    else:
        Path(".env").write_text(f"{name}=8\n")
    found = check_settings(Settings.model_construct())
    assert found.state == state
    assert (name in found.text) == (state == "note")
