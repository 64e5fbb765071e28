"""Structured logs on stderr: JSON for machines, one line an event, never a prompt or a key."""

import logging
import sys

import structlog

from core.settings import Settings

NO_MORE_FILES = "socket.accept() out of system resource"
"""What asyncio says, thousands of times a second, while as many files are open as may be."""
REPEAT_SECONDS = 10.0


class _Seldom(logging.Filter):
    """Lets that pass once in `REPEAT_SECONDS`, and all else."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether it is something else, or was not said for long."""
        if not str(record.msg).startswith(NO_MORE_FILES):
            return True
        if record.created - self._passed_at < REPEAT_SECONDS:
            return False
        self._passed_at = record.created
        return True


def configure_logging(settings: Settings, *, process: str) -> None:
    """Send structlog and the standard library's loggers to stderr in one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    handler.setLevel(settings.log_level)  # some libraries give their own loggers a lower one
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    logging.getLogger("asyncio").filters[:] = [_Seldom()]
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each call of the engine
    logging.getLogger("alembic").setLevel(logging.WARNING)  # /readyz asks it for the revision
    structlog.contextvars.bind_contextvars(process=process)
