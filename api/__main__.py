"""Run the api: `python -m api`."""

import sys
from contextlib import suppress

from core.process import allow_connections, die_with_parent


def main() -> None:
    """Serve on the host and port of the settings until a signal comes."""
    die_with_parent()
    allow_connections()
    from api.app import create_app
    from api.server import Server
    from core.log import configure_logging
    from core.settings import get_settings

    settings = get_settings()
    configure_logging(settings, process="api")
    server = Server(create_app(settings), settings)
    with suppress(KeyboardInterrupt):  # which uvicorn passes on once it has stopped
        server.run()
    if not server.started:
        sys.exit(3)  # as uvicorn's own command does


if __name__ == "__main__":
    main()
