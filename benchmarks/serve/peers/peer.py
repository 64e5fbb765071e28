"""What a peer needs to run; its environment is made the first time."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import make_environment
from benchmarks.sides import JSON, environment, serve

Answer = Callable[[JSON], JSON]
READY = {"do": "ready"}
"""The first question to a side: it is answered once everything is loaded."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer: `module` runs it, in an environment of its own if it has `requirements`."""

    name: str
    module: str
    requirements: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    """Packages that come along and keep others from being imported."""
    packages: tuple[str, ...] = ()
    """Whose versions are printed."""
    variables: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Variables of the usual environment that would keep it from its own best settings."""

    def python(self) -> Path:
        """Return its interpreter; pip's error is raised if it cannot be installed."""
        if not self.requirements:
            return Path(sys.executable)
        return make_environment(self.name, self.requirements, remove=self.remove)

    def environment(self) -> dict[str, str]:
        """Return the environment it runs in: the one of all sides, but for what it needs."""
        usual = {**environment(), **self.variables}
        return {name: value for name, value in usual.items() if name not in self.without}

    def versions(self) -> dict[str, str]:
        """Return the versions of its packages."""
        code = "import json,sys;from importlib.metadata import version as v;"
        code += "print(json.dumps({n: v(n).partition('+')[0] for n in sys.argv[1:]}))"
        done = subprocess.run(
            [self.python(), "-c", code, *self.packages], capture_output=True, text=True, check=True
        )
        versions: dict[str, str] = json.loads(done.stdout)
        return versions


def answer_orders(load: Callable[[dict[str, Any]], Answer]) -> None:
    """Load what the specification on the command line says when asked for the first time."""
    loaded: list[Answer] = []

    def answer(order: JSON) -> JSON:
        if order == READY:
            began = time.perf_counter()
            loaded.append(load(json.loads(sys.argv[1])))
            return {"seconds": time.perf_counter() - began}
        return loaded[0](order)

    serve(answer)


def timed(work: Callable[[], list[list[int]]]) -> JSON:
    """Return the seconds that work took and the tokens that it gave, row by row."""
    began = time.perf_counter()
    tokens = work()
    return {"seconds": time.perf_counter() - began, "tokens": tokens}
