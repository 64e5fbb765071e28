"""Run the api: `python -m api`."""

from core.process import die_with_parent


def main() -> None:
    """Serve on the host and port of the settings until a signal comes."""
    die_with_parent()
    import uvicorn

    from api.app import create_app
    from core.log import configure_logging
    from core.settings import get_settings

    settings = get_settings()
    configure_logging(settings, process="api")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
