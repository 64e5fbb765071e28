"""What fails in a benchmark takes nothing along of what else it measures."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class Failures(dict[str, str]):
    """Why things failed, by their names; a benchmark with any has failed as a whole, at its end."""

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Note what fails in this block and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a peer that cannot be installed, say
            traceback.print_exc(file=sys.stderr)
            self[name] = f"{type(error).__name__}: {error}"
            print(f"  {name} failed: {error}", file=sys.stderr, flush=True)
