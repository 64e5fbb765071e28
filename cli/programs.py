"""The programs of an installation, each alone: what `serve` starts together and compose apart."""

import os
import sys
from typing import TYPE_CHECKING

from cli.console import out
from cli.environment import DataDir, Host, Port, configure, make_folder

if TYPE_CHECKING:
    from core.settings import Settings

SPINS = "1000"
"""Some ten microseconds, the time between two operations of a step."""
MODULES = {"api": "api", "worker": "worker", "engine": "worker.engine"}


def command(name: str) -> list[str]:
    """Return the command line of a program by its name."""
    return [sys.executable, "-m", MODULES[name]]


def environment() -> dict[str, str]:
    """Return what programs need beside the settings.

    Python's safe path keeps a folder named `api` or `models` where the user stands from being
    taken for ours.
    """
    return {"PYTHONSAFEPATH": "1"}


def waiting() -> dict[str, str]:
    """Return how threads of torch processes wait for each other, unless the operator says it.

    They spin as long as the next operation is likely to come, then sleep: who sleeps at once loses
    almost half when alone, who spins for long slows everybody on the same cores.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return {}
    return {"GOMP_SPINCOUNT": SPINS}


def api(data_dir: DataDir = None, host: Host = None, port: Port = None) -> None:
    """Run the HTTP api."""
    _become("api", configure(data_dir=data_dir, host=host, port=port))


def worker(data_dir: DataDir = None) -> None:
    """Run a worker, which validates files and trains."""
    _become("worker", configure(data_dir=data_dir))


def engine(data_dir: DataDir = None) -> None:
    """Run the inference engine."""
    _become("engine", configure(data_dir=data_dir))


def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to the newest schema; add GRAFTWORK_BOOTSTRAP_KEY if it has no key."""
    settings = configure(data_dir=data_dir)
    if not settings.database_url:
        make_folder(settings.data_folder)
    from cli import database

    revision = database.migrate(settings)
    out.print(f"The database is at revision {revision}.")
    if database.bootstrap(settings):
        out.print("Added the key of GRAFTWORK_BOOTSTRAP_KEY for tenant default.")


def _become(name: str, settings: "Settings") -> None:
    make_folder(settings.data_folder)
    extra = {**environment(), **({} if name == "api" else waiting())}
    os.execve(sys.executable, command(name), {**os.environ, **extra})  # noqa: S606
