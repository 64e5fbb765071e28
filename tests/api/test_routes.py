"""Rules that hold for every route, read off the application."""

import subprocess
import sys

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from tests.api.conftest import Stack

OPEN = {"/livez", "/health", "/readyz", "/metrics"}
IDS = {
    "{file_id}": "file-x",
    "{job_id}": "ftjob-x",
    "{comparison_id}": "ftcmp-x",
    "{model:path}": "ft:x",
    "{name:path}": "ft:x",
}


def all_routes() -> list[tuple[str, str]]:
    return sorted(
        (method, context.path)
        for context in iter_route_contexts(create_app().routes)
        for method in context.methods
    )


ROUTES = all_routes()


def test_the_walk_finds_the_routes() -> None:
    assert len(ROUTES) >= 20
    assert {path for _, path in ROUTES if not path.startswith("/v1/")} == OPEN


def fill(path: str) -> str:
    for name, value in IDS.items():
        path = path.replace(name, value)
    assert "{" not in path
    return path


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_the_open_ones_needs_a_key(stack: Stack, method: str, path: str) -> None:
    response = httpx.request(method, stack.url + fill(path), timeout=30)
    assert (response.status_code == 401) == (path not in OPEN)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path"), [item for item in ROUTES if "{" in item[1]])
def test_unknown_ids_are_404_everywhere(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, fill(path))
    assert response.status_code == 404
    assert response.json()["error"]["code"].endswith("_not_found")


def test_the_api_loads_no_torch() -> None:
    code = (
        "import sys, api.app; api.app.create_app().openapi(); "
        "assert not [name for name in sys.modules if name.startswith(('torch.', 'transformers.'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
