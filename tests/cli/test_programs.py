import pytest

from cli import programs


def test_threads_wait_as_the_operator_says_or_sleep_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert programs.waiting() == {"GOMP_SPINCOUNT": programs.SPINS}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        with monkeypatch.context() as context:
            context.setenv(name, "7")
            assert programs.waiting() == {}
