"""The trainer as a child process: what of our environment it has."""

import pytest

from core.memory import LARGE_PAGES
from worker import trainer


def test_it_is_told_how_to_compute_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_NATIVE", "off")
    monkeypatch.setenv("GRAFTWORK_DATABASE_URL", "postgresql://user:password@host/name")
    given = trainer._environment()
    assert given["GRAFTWORK_NATIVE"] == "off"
    assert "GRAFTWORK_DATABASE_URL" not in given


def test_it_has_large_pages_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (name,) = LARGE_PAGES
    monkeypatch.delenv(name, raising=False)
    assert LARGE_PAGES.items() <= trainer._environment().items()
    monkeypatch.setenv(name, "glibc.malloc.hugetlb=0")
    assert trainer._environment()[name] == "glibc.malloc.hugetlb=0"
