"""What the reference pages name is what the code has, defaults included."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from api.schemas.jobs import JobCreate
from api.schemas.sampling import HARMLESS, NEUTRAL
from core.settings import LimitSettings, Settings
from models.loop_request import LoopRequest

DOCS = Path(__file__).parents[1] / "docs"
SETTINGS, API, JOBS = ((DOCS / f"{name}.md").read_text() for name in ("settings", "api", "jobs"))
ELSEWHERE = {"GRAFTWORK_API_KEY", "GRAFTWORK_BASE_URL", "GRAFTWORK_NATIVE", "GRAFTWORK_PARENT_PID"}
"""Variables that `Settings` does not read."""


def named(model: type[BaseModel], prefix: str = "GRAFTWORK_") -> Iterator[tuple[str, Any]]:
    """Yield every variable of a settings class, with its default."""
    for name, field in model.model_fields.items():
        variable, kind = f"{prefix}{name.upper()}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from named(kind, f"{variable}__")
        else:
            yield variable, field.default


VARIABLES = dict(named(Settings))


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_setting_is_documented_with_its_default(variable: str) -> None:
    default = VARIABLES[variable]
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    cell = re.search(rf"^\| `{variable}` \| ([^|]+) \|", SETTINGS, flags=re.MULTILINE)
    assert cell, f"docs/settings.md has no row for {variable}"
    assert default is None or cell[1] == f"`{shown}`"


def test_no_page_names_a_setting_that_there_is_not() -> None:
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    found = {
        name for page in pages for name in re.findall(r"GRAFTWORK_[A-Z_]*[A-Z]", page.read_text())
    }
    blocks = {variable.rpartition("__")[0] for variable in VARIABLES}
    assert found <= VARIABLES.keys() | ELSEWHERE | blocks


@pytest.mark.parametrize("model", [JobCreate, LoopRequest])
def test_every_field_of_a_job_is_documented(model: type[BaseModel]) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", JOBS, flags=re.MULTILINE))
    assert model.model_fields.keys() <= rows
    if model is LoopRequest:
        assert all(field.description for field in model.model_fields.values())


def test_what_completions_refuse_or_ignore_is_documented() -> None:
    assert all(f"`{name}`" in API for name in HARMLESS | NEUTRAL.keys())
    assert all(f"`GRAFTWORK_LIMITS__{name.upper()}`" in API for name in LimitSettings.model_fields)
