"""How many threads the engine computes with: all cores, or its share beside trainers."""

import time
from pathlib import Path

import torch

from core.cores import EVERY_SECONDS, Beat, available, count, engine_share


class Threads:
    """Used by the torch thread alone: how many threads torch takes is a property of a thread."""

    def __init__(self, folder: Path, *, most: int) -> None:
        """Use `most` threads at most; 0 means every core."""
        self._folder = folder
        self._cores = len(available())
        self._most = most or self._cores
        self._beat = Beat(folder, "engine")
        self._looked = float("-inf")
        self._threads = self._most
        torch.set_num_threads(self._most)

    def work(self) -> None:
        """Say that there is work, and take as many threads as are due for the next step."""
        now = time.monotonic()
        if now - self._looked < EVERY_SECONDS:
            return
        self._looked = now
        try:
            self._beat.beat()
            trainers = count(self._folder, "trainer")
        except OSError:
            return  # a full disk is no reason to stop serving
        due = self._most if not trainers else engine_share(self._cores, trainers=trainers)
        due = min(due, self._most)
        if due != self._threads:
            self._threads = due
            torch.set_num_threads(due)
