"""Values that cannot be, told at the start by the variable's name."""

import pytest

from cli.environment import configure
from core.errors import InvalidRequest
from core.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def forget() -> None:
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOG_LEVEL", "loud"),
        ("STORE_URL", "ftp://host/folder"),
        ("DATABASE_URL", "mysql://host/name"),
        ("DATABASE_URL", "graftwork.db"),
        ("ENGINE_URL", "engine:8001"),
        ("LIMITS__FILE_BYTES", "0"),
        ("LIMITS__ADAPTER_BYTES", "-1"),
        ("LIMITS__REQUEST_BYTES", "0"),
        ("LIMITS__CHOICES", "0"),
        ("LIMITS__MAX_TOKENS", "0"),
    ],
)
def test_a_value_that_cannot_be_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"GRAFTWORK_{name}", value)
    with pytest.raises(InvalidRequest, match=f"GRAFTWORK_{name}: .*should be"):
        configure()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_level", "DEBUG"),
        ("store_url", "s3://bucket/prefix"),
        ("database_url", "sqlite:////tmp/graftwork.db"),
        ("database_url", "sqlite+pysqlite:////tmp/graftwork.db"),
        ("database_url", "postgresql://user:password@host/name"),
        ("database_url", "postgresql+psycopg://host/name?sslmode=require"),
        ("database_url", ""),
        ("engine_url", "http://engine:8001"),
        ("engine_url", "unix:/run/engine.sock"),
    ],
)
def test_a_value_that_can_be_is_taken(name: str, value: str) -> None:
    assert getattr(Settings.model_validate({name: value}), name) == value


def test_a_level_may_be_written_small() -> None:
    assert Settings.model_validate({"log_level": "debug"}).log_level == "DEBUG"
