"""Starts one engine: `python -m worker.engine`."""

import sys

from core.log import configure_logging
from core.process import die_with_parent
from core.settings import get_settings
from worker.engine.serve import serve


def main() -> None:
    """Serve the base of this installation until told to stop."""
    die_with_parent()
    settings = get_settings()
    configure_logging(settings, process="engine")
    sys.exit(serve(settings))


if __name__ == "__main__":
    main()
