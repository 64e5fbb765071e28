"""The Celery instance, and the doorbell: the database is the truth, a message only a hint.

A message that is lost, doubled or late changes nothing a user can see: workers claim rows, not
messages, and look at the table by themselves when no message comes. So messages are
acknowledged early, no result is kept, and sending gives up fast when the broker is away.
"""

import time
from collections.abc import Iterable
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import structlog
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from core.broker import find_broker
from core.settings import get_settings

SILENT_SECONDS = 5.0

VALIDATE = "graftwork.validate"
TRAIN = "graftwork.train"
COMPARE = "graftwork.compare"

log = structlog.get_logger(__name__)


class Ring(NamedTuple):
    """A task to wake a worker with, and the id of the row that it is about."""

    task: str
    subject: str


def make_celery() -> Celery:
    """Build the Celery application for the broker in force."""
    broker = find_broker(get_settings())
    celery = Celery("graftwork", broker=broker.url, include=["worker.tasks"])
    celery.conf.update(
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options=broker.transport_options,
        task_acks_late=False,
        task_ignore_result=True,
        task_publish_retry=False,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_soft_shutdown_timeout=0.0,
        task_default_queue="graftwork",
    )
    return celery


celery = make_celery()


class Doorbell:
    """Rings workers from a thread of its own, so that no request waits for a broker.

    After a failure it keeps still for a while; workers find the rows by themselves.
    """

    def __init__(self) -> None:
        self._rings: SimpleQueue[Ring] = SimpleQueue()
        self._thread: Thread | None = None

    def ring(self, rings: Iterable[Ring]) -> None:
        """Send wake-ups soon; return at once."""
        for item in rings:
            if self._thread is None:
                self._thread = Thread(target=self._work, name="doorbell", daemon=True)
                self._thread.start()
            self._rings.put(item)

    def _work(self) -> None:
        silent_until = 0.0
        while True:
            task, subject = self._rings.get()
            if time.monotonic() < silent_until:
                continue
            try:
                celery.send_task(task, args=[subject], retry=False)
            except (KombuError, OperationalError, OSError) as error:
                silent_until = time.monotonic() + SILENT_SECONDS
                log.warning("doorbell not rung", task=task, subject=subject, error=str(error))


ring = Doorbell().ring
