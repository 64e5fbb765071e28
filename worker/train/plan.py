"""Which rows at which step, when a run is over, and how far its schedule is."""

import hashlib
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from models.spec import LoopSpec
from worker.train.data import Examples

TIME_STEPS = 10_000
"""A schedule that is laid over time has this many steps."""


class Plan:
    """The course of a run over a data set; it ends by epochs, by tokens or by seconds."""

    def __init__(self, examples: Examples, *, loop: LoopSpec, seed: int) -> None:
        self._lengths = np.diff(examples.offsets)
        self._loop = loop
        # Kept here, not by all plans together: those of a gang would push each other's out.
        self._order = lru_cache(maxsize=1)(partial(epoch_order, len(examples), seed=seed))
        self.steps_per_epoch = -(-len(examples) // loop.batch_size)
        self.total_steps = self._count_steps()
        """Optimiser steps of the whole run; 0 where only time will tell."""

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the rows of `step` (from 0); the last batch of an epoch may be short."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = self._order(epoch=epoch)
        size = self._loop.batch_size
        return order[index * size : (index + 1) * size]

    def rows(self) -> NDArray[np.int64]:
        """Return every row that the run will read; all of them where only time will tell."""
        if not self.total_steps or self.total_steps >= self.steps_per_epoch:
            return np.arange(len(self._lengths))
        return np.concatenate([self.batch(step) for step in range(self.total_steps)])

    def tokens(self, step: int) -> int:
        """Return how many tokens the rows of a step have."""
        return int(self._lengths[self.batch(step)].sum())

    def is_over(self, *, step: int, seconds: float) -> bool:
        """Say whether `step` steps, or this time of training, are all."""
        if self._loop.max_seconds is not None:
            return seconds >= self._loop.max_seconds
        return step >= self.total_steps

    def ends_epoch(self, step: int) -> bool:
        """Say whether the epoch is over after `step` steps."""
        return step % self.steps_per_epoch == 0

    def schedule(self, *, step: int, seconds: float) -> tuple[int, int]:
        """Return the step (from 0) and the length that the learning rate depends on."""
        if self._loop.max_seconds is None:
            return step, self.total_steps
        done = min(seconds / self._loop.max_seconds, 1.0)
        return min(int(done * TIME_STEPS), TIME_STEPS - 1), TIME_STEPS

    def seconds_left(self, *, step: int, seconds: float, pace: float) -> float:
        """Estimate the time to the end at `pace` seconds a step."""
        if self._loop.max_seconds is not None:
            return max(self._loop.max_seconds - seconds, 0.0)
        return (self.total_steps - step) * pace

    def _count_steps(self) -> int:
        if self._loop.max_seconds is not None:
            return 0
        if self._loop.max_tokens is None:
            return self._loop.n_epochs * self.steps_per_epoch
        epoch_tokens = int(self._lengths.sum())
        whole, left = divmod(self._loop.max_tokens, epoch_tokens)
        step = whole * self.steps_per_epoch
        while left > 0:
            left -= self.tokens(step)
            step += 1
        return step


def epoch_order(rows: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of rows in an epoch, a function of seed and epoch alone."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    order: NDArray[np.int64] = torch.randperm(rows, generator=generator).numpy()
    return order
