"""What `graftwork doctor` finds by itself, without a server."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.checks import check_settings
from core.settings import Settings

Write = Callable[..., None]
ELSEWHERE = "GRAFTWORK_API_KEY", "GRAFTWORK_BASE_URL", "GRAFTWORK_NATIVE", "HF_ENDPOINT"


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    """Give a variable a value, in the environment or in the file `.env`, where there are none."""
    monkeypatch.chdir(tmp_path)
    for other in [one for one in os.environ if one.startswith(("GRAFTWORK_", "AWS_", "HF_"))]:
        monkeypatch.delenv(other)

    def write(name: str, *, where: str) -> None:
        if where == "environment":
            monkeypatch.setenv(name, "8")
        else:
            Path(".env").write_text(f"{name}=8\n")

    return write


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("GRAFTWORK_ENGINE__ROWS", "ok"),
        ("graftwork_worker__compute__threads", "ok"),
        ("GRAFTWORK_ENGINE__ROW", "note"),
        ("GRAFTWORK_WORKER__COMPUTE__DTYPE", "note"),
        ("GRAFTWORK_DATADIR", "note"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "file"])
def test_names_that_are_no_settings_are_told(
    write: Write, name: str, state: str, where: str
) -> None:
    write(name, where=where)
    found = check_settings(Settings.model_construct())
    assert found.state == state
    assert (name in found.text) == (state == "note")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_not_read_from_the_file_is_told_if_it_is_there_alone(
    write: Write, name: str
) -> None:
    write(name, where="file")
    found = check_settings(Settings.model_construct())
    assert (found.state, found.text) == ("note", f"{name}: not read from .env")
    write(name, where="environment")
    assert check_settings(Settings.model_construct()).state == "ok"


@pytest.mark.parametrize(
    ("store_url", "state"), [(None, "ok"), ("s3://bucket/prefix", "note"), ("gs://bucket", "ok")]
)
def test_credentials_of_the_store_are_told_if_they_are_in_the_file_alone(
    write: Write, store_url: str | None, state: str
) -> None:
    write("AWS_ACCESS_KEY_ID", where="file")
    settings = Settings.model_construct(store_url=store_url)
    found = check_settings(settings)
    assert found.state == state
    assert ("AWS_ACCESS_KEY_ID: not read from .env" in found.text) == (state == "note")
    write("AWS_ACCESS_KEY_ID", where="environment")
    assert check_settings(settings).state == "ok"
