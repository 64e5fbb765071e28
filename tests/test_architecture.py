"""The rules of the layout that import-linter cannot say."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "cli", "core", "migrations", "models", "worker")
FILES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "versions" not in path.parts
]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}
STATEMENTS = {"select", "insert", "update", "delete", "text", "exec_driver_sql"}


def imported(tree: ast.AST) -> set[str]:
    """Return `module.name` for everything that a file imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("name", TREES)
def test_sql_is_written_only_beside_the_tables(name: str) -> None:
    if name.startswith("models/tables/"):
        return
    made = {
        item.rpartition(".")[2] for item in imported(TREES[name]) if item.startswith("sqlalchemy.")
    }
    assert not made & STATEMENTS


@pytest.mark.parametrize("name", TREES)
def test_only_the_unit_of_work_commits(name: str) -> None:
    calls = [
        node.func.attr
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert "commit" not in calls
    if name != "core/database.py":
        assert "rollback" not in calls


@pytest.mark.parametrize("name", TREES)
def test_http_stays_at_the_edge(name: str) -> None:
    web = {item for item in imported(TREES[name]) if item.startswith(("fastapi", "starlette"))}
    assert not web or name.startswith(("api/", "worker/engine/app"))


@pytest.mark.parametrize("name", TREES)
def test_nothing_is_unpickled(name: str) -> None:
    banned = {"pickle", "dill", "joblib", "marshal", "shelve", "torch.load", "torch.save"}
    assert not imported(TREES[name]) & banned
    used = {ast.unparse(node) for node in ast.walk(TREES[name]) if isinstance(node, ast.Attribute)}
    assert not used & banned


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(TREES[path.relative_to(ROOT).as_posix()]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno}"
