"""What `celery -A worker.app worker` loads: the tasks, and a life beside the broker.

The poller starts with the worker, not with its connection, so that work goes on while the
broker is away.
"""

from typing import Any

from celery.signals import setup_logging, worker_init, worker_shutdown, worker_shutting_down

from core.log import configure_logging
from core.queue import celery
from core.settings import get_settings
from worker.dispatch import get_dispatcher

__all__ = ["celery"]


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    configure_logging(get_settings(), process="worker")


@worker_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    get_dispatcher().start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stopping(**_: Any) -> None:
    get_dispatcher().stopping.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    get_dispatcher().stop()
