"""Triton's interpreter for the tests of this folder; see `tests/conftest.py`."""

import os

import pytest

MODE = os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for what the kernels were made for when they were imported."""
    monkeypatch.setenv("TRITON_INTERPRET", MODE)
