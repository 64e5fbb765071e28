"""The trainer as a child process: what of our environment it has."""

import pytest

from worker import trainer


def test_it_is_told_how_to_compute_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_NATIVE", "off")
    monkeypatch.setenv("GRAFTWORK_DATABASE_URL", "postgresql://user:password@host/name")
    given = trainer._environment()
    assert given["GRAFTWORK_NATIVE"] == "off"
    assert "GRAFTWORK_DATABASE_URL" not in given
