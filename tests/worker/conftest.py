"""An installation with a tiny base, and what a job comes to in one that nothing disturbs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.bases import write_manifest
from migrations import migrate
from models.nn.chat import Renderer
from tests.tiny import make_tiny_base
from tests.worker.long_job import post, weights
from tests.worker.site import Site


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama, registered as the base `tiny`."""
    folder = make_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")
    write_manifest(folder, id="tiny", shape={}, renderer_digest=Renderer.load(folder).digest)
    return folder


@pytest.fixture
def site(tmp_path: Path, database_url: str, tiny_base: Path) -> Iterator[Site]:
    """An installation over each kind of database."""
    made = Site(tmp_path, database_url=database_url, base=tiny_base)
    yield made
    made.close()


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> str:
    """The hash of what the long job comes to, alone and in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    url = f"sqlite:///{folder / 'graftwork.db'}"
    migrate(url)
    site = Site(folder, database_url=url, base=tiny_base)
    try:
        site.start_worker()
        row = post(site)
        site.wait_for_state(row, "succeeded")
        return weights(site, row)
    finally:
        site.close()
