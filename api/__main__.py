"""Run the api: `python -m api`."""

from contextlib import suppress

from core.process import die_with_parent


def main() -> None:
    """Serve on the host and port of the settings until a signal comes."""
    die_with_parent()
    from api.app import create_app
    from api.server import Server
    from core.log import configure_logging
    from core.settings import get_settings

    settings = get_settings()
    configure_logging(settings, process="api")
    with suppress(KeyboardInterrupt):  # which uvicorn passes on once it has stopped
        Server(create_app(settings), settings).run()


if __name__ == "__main__":
    main()
