"""A part of a benchmark that fails takes nothing along of what the others measured."""

import pytest

from benchmarks.failures import Failures


def test_what_fails_is_noted_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    failures, done = Failures(), []
    for name in ("first", "second", "third"):
        with failures.guard(name):
            if name == "second":
                raise OSError("no such peer")
            done.append(name)
    assert done == ["first", "third"]
    assert failures == {"second": "OSError: no such peer"}
    assert "second failed: no such peer" in capsys.readouterr().err


def test_an_interruption_ends_the_benchmark() -> None:
    failures = Failures()
    with pytest.raises(KeyboardInterrupt), failures.guard("first"):
        raise KeyboardInterrupt
    assert not failures
