"""What others post to the engine's thread, run between its steps."""

import ctypes
import queue
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from core.errors import GraftworkError

ResultT = TypeVar("ResultT")

GATHER_SECONDS = 0.005
"""How long work that could begin waits for requests that are being read already."""


Refuse = Callable[[GraftworkError], None]
"""Takes why something is not done; any thread may call it."""


class _Post(NamedTuple):
    act: Callable[[], None]
    refuse: Refuse


class Inbox:
    """Functions in the order in which they were posted, by any thread."""

    def __init__(self) -> None:
        self._posted: queue.SimpleQueue[_Post] = queue.SimpleQueue()
        self._closed: GraftworkError | None = None
        self.called = ctypes.c_int32()
        """1 from when something is posted until what has been posted is run."""

    def put(self, act: Callable[[], None], *, refuse: Refuse = lambda _: None) -> None:
        """Have something done by the engine's thread, or refused if that ends before."""
        self._posted.put(_Post(act, refuse))
        self.called.value = 1  # behind it, or `run` might lower the flag before it finds this
        if self._closed is not None:  # behind it too, or `close` might not find this
            self._refuse_posted(self._closed)

    def close(self, error: GraftworkError) -> None:
        """Refuse what is left and all that is posted from now on: nothing is run any more."""
        self._closed = error
        self._refuse_posted(error)

    def ask(self, work: Generator[None, None, ResultT]) -> Future[ResultT]:
        """Have something computed by the engine's thread, unless it is cancelled before.

        It yields where a step may come in between.
        """
        result: Future[ResultT] = Future()
        self._put_piece(result, work)
        return result

    def run(self, *, wait: bool) -> None:
        """Run what was posted meanwhile; with `wait`, sleep until something is.

        What is posted by the last of it has its turn after the next step.
        """
        if wait:
            self._posted.get().act()
        self.called.value = 0
        for _ in range(self._posted.qsize()):
            self._posted.get().act()

    def gather(self, coming: Callable[[], bool]) -> None:
        """Run what is posted while more is `coming`, a little: a crowd begins together."""
        end = time.monotonic() + GATHER_SECONDS
        while coming() and (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                self._posted.get(timeout=left).act()
        self.run(wait=False)

    def _put_piece(self, result: Future[ResultT], work: Generator[None, None, ResultT]) -> None:
        self.put(partial(self._go_on, result, work), refuse=partial(_fail, result))

    def _go_on(self, result: Future[ResultT], work: Generator[None, None, ResultT]) -> None:
        if result.cancelled():
            return
        try:
            next(work)
        except StopIteration as end:
            if result.set_running_or_notify_cancel():
                result.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - the asker's to handle; the engine goes on
            _fail(result, error)
        else:
            self._put_piece(result, work)

    def _refuse_posted(self, error: GraftworkError) -> None:
        """Empty the queue; who else does so at the same time finds other posts."""
        with suppress(queue.Empty):
            while True:
                self._posted.get_nowait().refuse(error)


def _fail(result: Future[Any], error: Exception) -> None:
    if result.set_running_or_notify_cancel():
        result.set_exception(error)
