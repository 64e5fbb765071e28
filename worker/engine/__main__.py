"""Starts one engine: `python -m worker.engine`."""

import logging
import os

from core.log import configure_logging
from core.process import allow_connections, die_with_parent
from core.settings import get_settings
from worker.engine.serve import serve


def main() -> None:
    """Serve the base of this installation until told to stop."""
    die_with_parent()
    allow_connections()
    settings = get_settings()
    configure_logging(settings, process="engine")
    code = serve(settings)
    logging.shutdown()
    os._exit(code)  # any other exit waits for every thread, and one may hang in a store


if __name__ == "__main__":
    main()
