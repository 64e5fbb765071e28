"""How many threads the engine computes with: all cores, or its share beside trainers."""

import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import torch

from core.cores import EVERY_SECONDS, Beat, available, count, engine_share


class Threads:
    """Used by the torch thread: how many threads torch takes is a property of a thread.

    One of its own says that there is work, however long a step of it takes, and looks who else
    computes: files take milliseconds to find while steps keep everything out of the caches.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        """Use `most` threads at most; 0 means every core."""
        self._folder = folder
        self._cores = len(available())
        self._most = most or self._cores
        self._trainers = 0
        self._looked = float("-inf")
        self._threads = self._most
        self._working, self._over = Event(), Event()
        torch.set_num_threads(self._most)
        self._announcer = Thread(target=self._announce, name="engine-beat", daemon=True)

    def work(self) -> None:
        """Say that there is work from now on, and take as many threads as are due for a step."""
        self._working.set()
        if self._announcer.ident is None:
            self._announcer.start()
        if time.monotonic() - self._looked >= EVERY_SECONDS:  # as after a pause
            self._look()
        trainers = self._trainers
        due = self._most if not trainers else engine_share(self._cores, trainers=trainers)
        due = min(due, self._most)
        if due != self._threads:
            self._threads = due
            torch.set_num_threads(due)

    def rest(self) -> None:
        """Say that there is no work."""
        self._working.clear()

    def close(self) -> None:
        """Say nothing more."""
        self._over.set()
        self._working.set()
        if self._announcer.ident is not None:
            self._announcer.join()

    def _look(self) -> None:
        with suppress(OSError):  # a broken disk is no reason to stop serving
            self._trainers = count(self._folder, "trainer")
        self._looked = time.monotonic()

    def _announce(self) -> None:
        beat = Beat(self._folder, "engine")
        while self._working.wait() and not self._over.is_set():
            with suppress(OSError):  # a full one neither
                beat.beat()
            self._look()
            self._over.wait(EVERY_SECONDS / 2)
        with suppress(OSError):
            beat.end()
