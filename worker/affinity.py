"""Keeps a trainer off the cores of an engine that has work, and gives them back.

A trainer's number of threads never changes, for what it computes must not depend on who else is
there; the kernel is told where these threads may run.
"""

import os
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from core.cores import EVERY_SECONDS, Beat, available, count, engine_share


class Affinity:
    """Watches over one trainer, in a thread of its own, until it is told to end."""

    def __init__(self, process: int, *, folder: Path) -> None:
        """Begin at once; `folder` is where programs of one installation meet."""
        self._process = process
        self._folder = folder
        self._cores = available()
        self._was_confined = False
        self._beat = Beat(folder, "trainer")
        self._over = Event()
        self._thread = Thread(target=self._watch, name="affinity", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Say that the trainer has ended."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            with suppress(OSError):  # a full disk, or a trainer that has just ended
                self._beat.beat()
                self._confine(self._due())
        with suppress(OSError):
            self._beat.end()

    def _due(self) -> list[int]:
        """Return the cores that trainers may use now."""
        if len(self._cores) == 1 or not count(self._folder, "engine"):
            return self._cores
        trainers = max(1, count(self._folder, "trainer"))
        return self._cores[engine_share(len(self._cores), trainers=trainers) :]

    def _confine(self, cores: list[int]) -> None:
        """Let every thread of the trainer run on these cores only; new threads inherit that.

        One that is born meanwhile inherits what was before, until the next look.
        """
        self._was_confined |= cores != self._cores
        if not self._was_confined or not hasattr(os, "sched_setaffinity"):
            return
        for thread in Path(f"/proc/{self._process}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)
